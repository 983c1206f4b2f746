"""The catalogue hangs together, finds what kernels say, and a site has the last word."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.core.errors import InputError
from leptonai.operations.alarms import Subject
from leptonai.operations.faults.catalogue import alarm_of, read_site, shipped

SAID = {
    "NVRM: Xid (PCI:0000:10:1c): 63, pid=1896, Row Remapper: New row marked for remapping": ("xid_63", "0000:10:1c"),
    "NVRM: Xid (0000:01:00): 13, 0005 00000000": ("xid_13", "0000:01:00"),
    "nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): 24007, Fatal, Link 44 down": ("sxid_24007", "0000:c1:00.0"),
    "Out of memory: Killed process 4242 (python) total-vm:1kB": ("oom_kill", ""),
    "Memory cgroup out of memory: Killed process 7 (python3)": ("oom_cgroup", ""),
    "blk_update_request: I/O error, dev sdb, sector 123": ("disk_medium", "sdb"),
    "nvme nvme0: controller is down; will reset: CSTS=0xffffffff": ("nvme_down", "nvme0"),
    "EXT4-fs (nvme0n1p2): Remounting filesystem read-only": ("read_only", "nvme0n1p2"),
    "EXT4-fs error (device sda1): ext4_lookup:1: inode #2": ("ext4_error", "sda1"),
    "watchdog: BUG: soft lockup - CPU#3 stuck for 22s! [python:1]": ("soft_lockup", ""),
    "INFO: task python:1234 blocked for more than 120 seconds.": ("hung_task", ""),
    "pcieport 0000:00:1c.0: AER: Corrected error received: 0000:02:00.0": ("pcie_corrected", "0000:00:1c.0"),
    "CPU2: Core temperature above threshold, cpu clock throttled (total events = 1)": ("cpu_throttled", ""),
    "EDAC MC0: 1 CE memory read error on CPU_SrcID#0": ("edac_corrected", ""),
    "EDAC MC1: 1 UE memory read error": ("edac_uncorrected", ""),
    "NETDEV WATCHDOG: eth0 (ixgbe): transmit queue 3 timed out": ("nic_timeout", "eth0"),
    "mlx5_core 0000:3b:00.0: poll_health:739: Fatal error 1 detected": ("mlx_health", "0000:3b:00.0"),
    "md/raid1:md0: Disk failure on sdb1, disabling device.": ("md_degraded", "md0"),
}  # fmt: skip


@pytest.mark.parametrize("line", SAID)
def test_what_kernels_say_is_found(line: str) -> None:
    match = shipped().match(f"[  966.503025] {line}")
    assert match is not None
    assert (match.fault.id, match.device) == SAID[line]


@pytest.mark.parametrize(
    "line",
    ["", "usb 1-1: new high-speed USB device", "Xid", "NVRM: loading NVIDIA UNIX x86_64 Kernel Module"],
)
def test_ordinary_messages_are_not_faults(line: str) -> None:
    assert shipped().match(line) is None


@given(st.text(max_size=300))
def test_any_text_is_taken(text: str) -> None:
    found = shipped().match(text)
    assert found is None or found.fault.id in shipped().faults or "not in the catalogue" in found.fault.title


def test_the_data_hang_together() -> None:
    catalogue = shipped()
    assert re.fullmatch(r"\d{4}\.\d{2}\.\d+", catalogue.version)
    assert len(catalogue.faults) > 100
    for each in catalogue.faults.values():
        assert each.source.startswith("https://")
        assert (each.code is None) != (each.pattern is None)
        assert each.code is None or each.id == f"{each.family}_{each.code}"
        assert each.title
        assert each.meaning
        assert not each.title.endswith(".")
        assert each.severity != "fatal" or each.action in ("reboot_node", "inspect_hardware", "reset_device")


def test_a_code_nobody_knows_is_told_as_such() -> None:
    match = shipped().match("NVRM: Xid (PCI:0000:10:1c): 9999, something")
    assert match is not None
    assert (match.fault.id, match.fault.severity) == ("xid_9999", "warning")
    assert "not in the catalogue" in match.fault.title


def test_words_for_faults() -> None:
    for word in ("79", "xid 79", "XID-79", "xid79", "xid_79"):
        assert [each.id for each in shipped().explain(word)] == ["xid_79"]
    assert len(shipped().explain("sxid")) > 10
    with pytest.raises(InputError, match="no fault is called") as caught:
        shipped().explain("oom_kil")
    assert "oom_kill" in str(caught.value.hint)
    with pytest.raises(InputError):
        shipped().explain("99999")


def test_alarms_say_whom_it_befell() -> None:
    lost = shipped().match("NVRM: Xid (PCI:0000:10:1c): 79, GPU has fallen off the bus.")
    oom = shipped().match("Out of memory: Killed process 4242 (python)")
    assert lost is not None
    assert oom is not None
    alarm = alarm_of(lost, node="a", at_seconds=5.0)
    assert (alarm.kind, alarm.subject, alarm.severity, alarm.action) == (
        "xid_79", Subject("device", "a/0000:10:1c"), "fatal", "reboot_node",
    )  # fmt: skip
    assert "GPU has fallen off the bus" in alarm.evidence[0].what
    assert alarm_of(oom, node="a", at_seconds=5.0).subject == Subject("node", "a")


SITE = r"""
version: "site 3"
faults:
  - {id: xid_63, severity: critical, action: inspect_hardware, why: three such boards died within a week}
  - {id: segfault, ignored: true, why: students}
  - {id: our_fan, title: a fan of our racks stopped, pattern: 'rackfan (?P<device>\S+) stopped', why: ours,
     subject: device}
"""


def test_a_sites_file_goes_over_it(tmp_path: Path) -> None:
    path = tmp_path / "faults.yaml"
    path.write_text(SITE)
    catalogue = read_site(path, shipped())
    assert catalogue.version.endswith("with site 3")
    changed = catalogue.explain("xid_63")[0]
    assert (changed.severity, changed.why) == ("critical", "three such boards died within a week")
    assert changed.title == shipped().explain("xid_63")[0].title
    assert catalogue.match("python[12]: segfault at 0 ip 0") is None
    match = catalogue.match("rackfan r7 stopped")
    assert match is not None
    assert (match.fault.id, match.device) == ("our_fan", "r7")
    assert shipped().explain("xid_63")[0].severity == "warning"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{id: xid_6x, why: x, severity: info}", "'xid_6x' is not in the catalogue"),
        ("{id: xid_63}", "'why' is missing"),
        ("{id: a, why: x, title: b, pattern: '('}", "not a regular expression"),
        ("{id: xid_63, why: x, severity: awful}", "severity"),
    ],
)
def test_a_wrong_entry_is_told(entry: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "faults.yaml"
    path.write_text(f"version: '1'\nfaults:\n  - {entry}\n")
    with pytest.raises(InputError, match=said) as caught:
        read_site(path, shipped())
    assert "faults.yaml" in str(caught.value)
