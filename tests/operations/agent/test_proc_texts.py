"""Sources on recorded texts of ``/proc``: processor, memory, disks, network."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.operations.agent.cpu import open_cpu, open_pressure
from leptonai.operations.agent.disks import open_disks, open_space, parse_mounts
from leptonai.operations.agent.memory import open_edac, open_memory, parse_vmstat
from leptonai.operations.agent.network import open_links, open_network, parse_net_dev, parse_snmp
from tests.operations.agent.recorded import node, opened, said, says, why_absent

STAT = """\
cpu  401 2 150 98700 33 0 12 5 0 0
cpu0 201 1 80 49300 20 0 10 2 0 0
cpu1 200 1 70 49400 13 0 2 3 0 0
intr 4390000 0 9 0 0 0 0 0 1
ctxt 75580000
btime 1795426193
processes 311000
procs_running 3
procs_blocked 1
softirq 1000 1 2 3
"""
MEMINFO = """\
MemTotal:       16384000 kB
MemFree:         8192000 kB
MemAvailable:   12288000 kB
HugePages_Total:       4
Hugepagesize:       2048 kB
HardwareCorrupted:     4 kB
"""
VMSTAT = (
    "nr_free_pages 2048000\npswpin 7\npswpout 9\npgfault 100\npgmajfault 42\noom_kill 1\nthp_fault_alloc 3\n"
)
DISKSTATS = """\
   7       0 loop0 55 0 2 0 0 0 0 0 0 7 7 0 0 0 0 0 0
 259       0 nvme0n1 1000 20 80000 400 2000 30 160000 800 3 900 1200 0 0 0 0 50 60
 259       1 nvme0n1p1 900 20 70000 300 1900 30 150000 700 0 800 1000 0 0 0 0 0 0
   8       0 sda 5 0 40 10 0 0 0 0 0 10 10
   8      16 sdb 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
"""
NET_DEV = """\
Inter-|   Receive                                                |  Transmit
 face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed
    lo: 1111 11 0 0 0 0 0 0 1111 11 0 0 0 0 0 0
  eth0:123456789012 90000 1 2 0 0 0 7 987654321 80000 3 4 0 0 0 0
veth12: 9 9 9 9 0 0 0 0 9 9 9 9 0 0 0 0
"""
SNMP = """\
Ip: Forwarding DefaultTTL
Ip: 1 64
Tcp: RtoAlgorithm RtoMin ActiveOpens OutSegs RetransSegs InErrs OutRsts
Tcp: 1 200 50 22920000 47280 3 9
"""


def test_processor_time_is_in_seconds_by_mode(tmp_path: Path) -> None:
    found = says(open_cpu, node(tmp_path, {"proc/stat": STAT, "proc/loadavg": "3.35 1.26 0.46 3/512 9\n"}))
    modes = {"user": 4.01, "nice": 0.02, "system": 1.5, "idle": 987.0, "iowait": 0.33, "irq": 0.0,
             "softirq": 0.12, "steal": 0.05}  # fmt: skip
    assert found == pytest.approx(
        {
            **{f'node_cpu_seconds_total{{cpu="all",mode="{mode}"}}': value for mode, value in modes.items()},
            "node_load1": 3.35, "node_load5": 1.26, "node_load15": 0.46, "node_intr_total": 4390000,
            "node_context_switches_total": 75580000, "node_boot_time_seconds": 1795426193,
            "node_forks_total": 311000, "node_procs_running": 3, "node_procs_blocked": 1,
        }
    )  # fmt: skip


def test_each_core_is_told_where_it_is_asked_for(tmp_path: Path) -> None:
    place = node(tmp_path, {"proc/stat": STAT, "proc/loadavg": "0 0 0 1/1 1\n"}, per_core=True)
    found = says(open_cpu, place)
    assert found['node_cpu_seconds_total{cpu="1",mode="user"}'] == 2.0
    assert sum("node_cpu" in name for name in found) == 16


def test_a_file_is_read_anew_each_time(tmp_path: Path) -> None:
    place = node(tmp_path, {"proc/stat": STAT, "proc/loadavg": "1 1 1 1/1 1\n"})
    source = opened(open_cpu, place)
    assert said(source, place)["node_load1"] == 1
    (tmp_path / "proc/loadavg").write_text("2 1 1 1/1 1\n")
    assert said(source, place)["node_load1"] == 2
    source.close()


def test_pressure_is_in_seconds_and_may_lack_a_line(tmp_path: Path) -> None:
    line = "avg10=0.00 avg60=0.00 avg300=0.00 total="
    texts = {"cpu": f"some {line}1500000\n", "io": f"some {line}2000000\nfull {line}1000000\n",
             "memory": f"some {line}500000\nfull {line}250000\n"}  # fmt: skip
    found = says(
        open_pressure, node(tmp_path, {f"proc/pressure/{kind}": text for kind, text in texts.items()})
    )
    assert found == {
        "node_pressure_cpu_waiting_seconds_total": 1.5,
        "node_pressure_io_waiting_seconds_total": 2.0,
        "node_pressure_io_stalled_seconds_total": 1.0,
        "node_pressure_memory_waiting_seconds_total": 0.5,
        "node_pressure_memory_stalled_seconds_total": 0.25,
    }


def test_memory_is_in_bytes(tmp_path: Path) -> None:
    found = says(open_memory, node(tmp_path, {"proc/meminfo": MEMINFO, "proc/vmstat": VMSTAT}))
    assert found == {
        "node_memory_MemTotal_bytes": 16384000 * 1024,
        "node_memory_MemFree_bytes": 8192000 * 1024,
        "node_memory_MemAvailable_bytes": 12288000 * 1024,
        "node_memory_HardwareCorrupted_bytes": 4096,
        "node_vmstat_pswpin": 7,
        "node_vmstat_pswpout": 9,
        "node_vmstat_pgmajfault": 42,
        "node_vmstat_oom_kill": 1,
    }


@given(st.text(alphabet="abc pgmajfault_oomkill0123456789\n", max_size=200))
def test_a_broken_vmstat_gives_numbers_or_none(text: str) -> None:
    try:
        found = parse_vmstat(text)
    except ValueError:  # counted as a failure of the source
        return
    assert all(isinstance(value, float) for value in found.values())


def test_errors_of_memory_controllers_are_counted(tmp_path: Path) -> None:
    controller = "sys/devices/system/edac/mc"
    files = {f"{controller}/mc0/ce_count": "12\n", f"{controller}/mc0/ue_count": "0\n"}
    assert says(open_edac, node(tmp_path, files)) == {
        'node_edac_correctable_errors_total{controller="0"}': 12,
        'node_edac_uncorrectable_errors_total{controller="0"}': 0,
    }


def test_whole_disks_that_worked_are_told(tmp_path: Path) -> None:
    files = {"proc/diskstats": DISKSTATS, "sys/block/nvme0n1/size": "1\n", "sys/block/sda/size": "1\n"}
    found = says(open_disks, node(tmp_path, files))
    names = ("reads_completed_total", "read_bytes_total", "read_time_seconds_total", "writes_completed_total",
             "written_bytes_total", "write_time_seconds_total", "io_now", "io_time_seconds_total",
             "io_time_weighted_seconds_total")  # fmt: skip
    values = (1000, 80000 * 512, 0.4, 2000, 160000 * 512, 0.8, 3, 0.9, 1.2)
    expected = {
        f'node_disk_{name}{{device="nvme0n1"}}': value for name, value in zip(names, values, strict=True)
    }
    assert {name: value for name, value in found.items() if "nvme" in name} == pytest.approx(expected)
    assert {name.partition('device="')[2] for name in found} == {'nvme0n1"}', 'sda"}'}


def test_local_file_systems_are_asked_once_each(tmp_path: Path) -> None:
    place = node(tmp_path, {})
    mounts = (
        f"/dev/vda {tmp_path} ext4 ro,noatime 0 0\n/dev/vda /elsewhere ext4 rw 0 0\nsrv:/x /net nfs4 rw 0 0\n"
    )
    (tmp_path / "proc/self").mkdir()
    (tmp_path / "proc/self/mounts").write_text(mounts + "proc /proc proc rw 0 0\n/dev/vdb /gone xfs rw 0 0\n")
    found = says(open_space, place)
    assert len(found) == 6
    assert found[f'node_filesystem_readonly{{device="/dev/vda",fstype="ext4",mountpoint="{tmp_path}"}}'] == 1


def test_a_mount_may_have_a_space_in_its_name() -> None:
    text = r"/dev/sdc1 /mnt/two\040words xfs rw 0 0"
    assert [mount.mountpoint for mount in parse_mounts(text)] == ["/mnt/two words"]


def test_thousands_of_mounts_are_not_thousands_of_series() -> None:
    text = "".join(f"overlay /c/{number} overlay rw 0 0\n" for number in range(5000))
    assert len(parse_mounts(text)) == 64


def test_traffic_is_told_by_interface(tmp_path: Path) -> None:
    found = says(open_network, node(tmp_path, {"proc/net/dev": NET_DEV, "proc/net/snmp": SNMP}))
    names = ("receive_bytes", "receive_packets", "receive_errs", "receive_drop", "transmit_bytes",
             "transmit_packets", "transmit_errs", "transmit_drop")  # fmt: skip
    values = (123456789012, 90000, 1, 2, 987654321, 80000, 3, 4)
    eth0 = {
        f'node_network_{name}_total{{device="eth0"}}': value
        for name, value in zip(names, values, strict=True)
    }
    assert {name: value for name, value in found.items() if "eth0" in name} == eth0
    assert not any("veth" in name for name in found)
    assert [found[f"node_netstat_Tcp_{name}"] for name in ("OutSegs", "RetransSegs", "InErrs")] == [
        22920000,
        47280,
        3,
    ]


def test_a_counter_table_may_lack_its_second_line() -> None:
    assert parse_snmp("Tcp: OutSegs\n") == {}
    assert parse_net_dev("no colon here\n") == {}


def test_links_tell_their_state(tmp_path: Path) -> None:
    files = {
        "sys/class/net/eth0/operstate": "up\n", "sys/class/net/eth0/carrier": "1\n",
        "sys/class/net/eth0/speed": "100000\n", "sys/class/net/eth0/carrier_changes": "2\n",
        "sys/class/net/eth1/operstate": "down\n", "sys/class/net/eth1/speed": "-1\n",
        "sys/class/net/lo/operstate": "unknown\n",
    }  # fmt: skip
    assert says(open_links, node(tmp_path, files)) == {
        'node_network_up{device="eth0"}': 1,
        'node_network_carrier{device="eth0"}': 1,
        'node_network_speed_bytes{device="eth0"}': 12.5e9,
        'node_network_carrier_changes_total{device="eth0"}': 2,
        'node_network_up{device="eth1"}': 0,
    }


@pytest.mark.parametrize(
    ("opener", "reason"),
    [
        (open_cpu, "/proc/stat"), (open_pressure, "kernel does not count"), (open_memory, "/proc/meminfo"),
        (open_edac, "no memory controller"), (open_disks, "/proc/diskstats"), (open_space, "/proc/self/mounts"),
        (open_network, "/proc/net/dev"), (open_links, "/sys/class/net"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_absent_with_a_reason(tmp_path: Path, opener: object, reason: str) -> None:
    assert reason in why_absent(opener, node(tmp_path, {}))  # type: ignore[arg-type]
