"""Sources on recorded texts of ``/sys`` and of tools: sensors, SMART, control groups, InfiniBand, AMD."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.core.clock import FakeClock
from leptonai.operations.agent.amd import open_amd
from leptonai.operations.agent.cgroup import open_cgroup
from leptonai.operations.agent.infiniband import open_infiniband
from leptonai.operations.agent.sensors import open_hwmon, open_thermal
from leptonai.operations.agent.smart import SMART_SECONDS, SmartSource, open_smart, parse_smartctl
from leptonai.operations.agent.source import Place
from tests.operations.agent.recorded import node, opened, said, says, why_absent

ATA = {
    "smartctl": {"version": [7, 3]},
    "device": {"name": "/dev/sda", "type": "sat"},
    "smart_status": {"passed": False},
    "temperature": {"current": 41},
    "power_on_time": {"hours": 20_000},
    "ata_smart_attributes": {
        "table": [
            {"id": 5, "name": "Reallocated_Sector_Ct", "value": 95, "raw": {"value": 312, "string": "312"}},
            {"id": 9, "name": "Power_On_Hours", "value": 77, "raw": {"value": 20_000}},
            {"id": 187, "name": "Reported_Uncorrect", "raw": {"value": 4}},
            {"id": 197, "name": "Current_Pending_Sector"},
        ]
    },
}
NVME = {
    "smart_status": {"passed": True, "nvme": {"value": 0}},
    "temperature": {"current": 36},
    "power_on_time": {"hours": 100},
    "nvme_smart_health_information_log": {
        "critical_warning": 4, "available_spare": 98, "percentage_used": 112, "media_errors": 3,
    },
}  # fmt: skip


def test_chips_tell_in_base_units_and_a_sleeping_one_is_left_out(tmp_path: Path) -> None:
    chip = "sys/class/hwmon/hwmon0"
    files = {
        f"{chip}/name": "coretemp\n", f"{chip}/temp1_input": "54000\n", f"{chip}/temp1_label": "Package id 0\n",
        f"{chip}/temp1_crit": "100000\n", f"{chip}/fan1_input": "1200\n", f"{chip}/in0_input": "1050\n",
        f"{chip}/power1_average": "35000000\n", f"{chip}/temp2_input": "\n", f"{chip}/uevent": "x\n",
    }  # fmt: skip
    found = says(open_hwmon, node(tmp_path, files))
    labels = '{chip="coretemp",device="hwmon0",'
    assert found == pytest.approx(
        {
            f'node_hwmon_temp_celsius{labels}label="Package id 0",sensor="temp1"}}': 54.0,
            f'node_hwmon_temp_crit_celsius{labels}label="Package id 0",sensor="temp1"}}': 100.0,
            f'node_hwmon_fan_rpm{labels}sensor="fan1"}}': 1200,
            f'node_hwmon_in_volts{labels}sensor="in0"}}': 1.05,
            f'node_hwmon_power_average_watt{labels}sensor="power1"}}': 35.0,
        }
    )


def test_thermal_zones_tell(tmp_path: Path) -> None:
    zone = "sys/class/thermal/thermal_zone3"
    files = {f"{zone}/type": "x86_pkg_temp\n", f"{zone}/temp": "47500\n"}
    assert says(open_thermal, node(tmp_path, files)) == {
        'node_thermal_zone_temp{type="x86_pkg_temp",zone="3"}': 47.5
    }


def test_reports_of_disks_are_read() -> None:
    found = {
        (name, labels.get("id", "")): value for name, labels, value in parse_smartctl(json.dumps(ATA), "sda")
    }
    assert found == {
        ("lepton_disk_smart_healthy", ""): 0,
        ("lepton_disk_temperature_celsius", ""): 41,
        ("lepton_disk_power_on_seconds_total", ""): 72_000_000,
        ("lepton_disk_attribute_raw", "5"): 312,
        ("lepton_disk_attribute_raw", "187"): 4,
    }
    nvme = {name: value for name, _, value in parse_smartctl(json.dumps(NVME), "nvme0n1")}
    assert nvme == pytest.approx(
        {
            "lepton_disk_smart_healthy": 1, "lepton_disk_temperature_celsius": 36,
            "lepton_disk_power_on_seconds_total": 360_000, "lepton_disk_media_errors_total": 3,
            "lepton_disk_critical_warning": 4, "lepton_disk_spare_ratio": 0.98, "lepton_disk_wear_ratio": 1.12,
        }
    )  # fmt: skip


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["smart_status", "passed", "temperature", "current", "ata_smart_attributes", "table", "id", "raw", "value"]
    ), inner, max_size=4),
)  # fmt: skip


@given(json_values.map(json.dumps) | st.text(max_size=50))
def test_no_report_breaks_the_reader(text: str) -> None:
    for _, labels, value in parse_smartctl(text, "sda"):
        assert isinstance(value, float | int)
        assert labels["disk"] == "sda"


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def disk(folder: Path) -> Place:
    return node(
        folder, {"sys/block/sda/device/state": "running\n", "sys/block/sda/device/ioerr_cnt": "0x1f\n"}
    )


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 10.0
    while not what():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)


def test_a_disk_is_asked_beside_the_agent_and_its_answer_stays(tmp_path: Path) -> None:
    place, clock = disk(tmp_path), FakeClock(start_seconds=100.0)
    report = tmp_path / "report.json"
    report.write_text(json.dumps(ATA))
    command = script(tmp_path / "smartctl", f'echo "$@" >> {tmp_path}/asked; cat {report}')
    source = SmartSource(place, [tmp_path / "sys/block/sda"], command=command, clock=clock)
    kernel = {'lepton_disk_state_running{disk="sda"}': 1.0, 'lepton_disk_io_errors_total{disk="sda"}': 31.0}
    assert said(source, place) == kernel
    healthy = 'lepton_disk_smart_healthy{disk="sda"}'
    until(lambda: healthy in said(source, place))
    report.write_text("")  # it sleeps now
    clock.advance(SMART_SECONDS)
    asked = tmp_path / "asked"
    until(lambda: bool(said(source, place)) and len(asked.read_text().splitlines()) == 2)
    until(lambda: bool(said(source, place)) and source._process is None)
    assert said(source, place)[healthy] == 0
    assert asked.read_text().splitlines() == ["--json --all --nocheck=standby,0 /dev/sda"] * 2
    source.close()


def test_a_disk_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    place, clock = disk(tmp_path), FakeClock(start_seconds=100.0)
    command = script(tmp_path / "smartctl", "exec sleep 60")
    source = SmartSource(place, [tmp_path / "sys/block/sda"], command=command, clock=clock)
    said(source, place)
    process = source._process
    assert process is not None
    said(source, place)
    clock.advance(61.0)
    said(source, place)
    assert process.returncode == -9
    source.close()


def test_disks_without_a_tool_tell_what_the_kernel_knows(tmp_path: Path) -> None:
    place = disk(tmp_path / "some")
    source = open_smart(place, find=lambda name: None)
    assert len(said(source, place)) == 2  # type: ignore[arg-type]
    assert "no disk" in why_absent(open_smart, node(tmp_path / "none", {}))
    silent = node(tmp_path / "silent", {"sys/block/vda/device/vendor": "x\n"})
    assert "smartctl is not installed" in why_absent(
        lambda at: open_smart(at, find=lambda name: None), silent
    )


def test_a_control_group_tells_limits_use_and_kills(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/jobs/one"
    files = {
        "proc/self/cgroup": "1:name=systemd:/\n0::/jobs/one\n", f"{group}/memory.current": "4096\n",
        f"{group}/memory.max": "8192\n", f"{group}/memory.events": "low 0\noom 2\noom_kill 1\n",
        f"{group}/cpu.max": "150000 100000\n", f"{group}/pids.current": "12\n",
        f"{group}/cpu.stat": "usage_usec 2500000\nnr_throttled 3\nthrottled_usec 500000\n",
    }  # fmt: skip
    found = says(open_cgroup, node(tmp_path, files))
    assert found == {
        f"lepton_cgroup_{name}": value
        for name, value in {
            "memory_bytes": 4096, "memory_limit_bytes": 8192, "oom_kills_total": 1, "cpu_limit_cores": 1.5,
            "pids": 12, "cpu_seconds_total": 2.5, "cpu_throttled_seconds_total": 0.5,
        }.items()
    }  # fmt: skip


def test_a_control_group_may_be_without_limits_or_under_another_name(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/of/the/host\n", "sys/fs/cgroup/memory.max": "max\n",
             "sys/fs/cgroup/memory.current": "1\n"}  # fmt: skip
    assert says(open_cgroup, node(tmp_path / "in", files)) == {"lepton_cgroup_memory_bytes": 1}
    old = node(tmp_path / "v1", {"proc/self/cgroup": "4:memory:/x\n", "sys/fs/cgroup/memory/x": "\n"})
    assert "no version 2 group" in why_absent(open_cgroup, old)


def test_ports_tell_traffic_state_and_errors(tmp_path: Path) -> None:
    port = "sys/class/infiniband/mlx5_0/ports/1"
    files = {
        f"{port}/state": "4: ACTIVE\n", f"{port}/phys_state": "5: LinkUp\n", f"{port}/rate": "400 Gb/sec (4X NDR)\n",
        f"{port}/counters/port_rcv_data": "1000\n", f"{port}/counters/symbol_error": "3\n",
        f"{port}/counters/link_downed": "N/A (no PMA)\n",
    }  # fmt: skip
    labels = '{device="mlx5_0",port="1"}'
    assert says(open_infiniband, node(tmp_path, files)) == {
        f"node_infiniband_port_data_received_bytes_total{labels}": 4000,
        f"node_infiniband_symbol_error_total{labels}": 3,
        f"node_infiniband_state_id{labels}": 4,
        f"node_infiniband_physical_state_id{labels}": 5,
        f"node_infiniband_rate_bytes_per_second{labels}": 50e9,
    }
    assert "no port" in why_absent(open_infiniband, node(tmp_path / "none", {}))


CARD = {
    "sys/class/drm/card0/device/vendor": "0x1002\n",
    "sys/class/drm/card0/device/gpu_busy_percent": "73\n",
    "sys/class/drm/card0/device/mem_info_vram_used": "1000\n",
    "sys/class/drm/card0/device/mem_info_vram_total": "5000\n",
    "sys/class/drm/card0-DP-1/device/vendor": "0x1002\n",
    "sys/class/drm/card1/device/vendor": "0x10de\n",
}


def test_an_amd_device_tells_through_the_kernels_driver(tmp_path: Path) -> None:
    assert says(open_amd, node(tmp_path, CARD)) == pytest.approx(
        {
            'lepton_gpu_utilization_ratio{gpu="amd0"}': 0.73, 'lepton_gpu_memory_used_bytes{gpu="amd0"}': 1000,
            'lepton_gpu_memory_total_bytes{gpu="amd0"}': 5000, 'lepton_gpu_memory_free_bytes{gpu="amd0"}': 4000,
        }
    )  # fmt: skip
    assert "no device" in why_absent(open_amd, node(tmp_path / "none", {}))


class Amdsmi:
    """A few calls of the library, as its documentation describes their answers."""

    class AmdSmiException(Exception):
        pass

    def __init__(self) -> None:
        self.num_open = 0

    def amdsmi_init(self) -> None:
        self.num_open += 1

    def amdsmi_shut_down(self) -> None:
        self.num_open -= 1

    def amdsmi_get_processor_handles(self) -> list[object]:
        return ["first", "second"]

    def amdsmi_get_gpu_activity(self, handle: object) -> dict[str, Any]:
        return {"gfx_activity": 90, "umc_activity": "N/A"}

    def amdsmi_get_gpu_vram_usage(self, handle: object) -> dict[str, Any]:
        return {"vram_used": 2, "vram_total": 192 * 1024}

    def amdsmi_get_power_info(self, handle: object) -> dict[str, Any]:
        raise self.AmdSmiException("not supported")

    def amdsmi_get_gpu_total_ecc_count(self, handle: object) -> dict[str, Any]:
        return {"correctable_count": 5, "uncorrectable_count": 1}


def test_an_amd_device_tells_through_its_library(tmp_path: Path) -> None:
    place, library = node(tmp_path, CARD), Amdsmi()
    source = opened(lambda at: open_amd(at, library=library), place)
    found = said(source, place)
    assert {name: value for name, value in found.items() if "amd0" in name} == pytest.approx(
        {
            'lepton_gpu_utilization_ratio{gpu="amd0"}': 0.9,
            'lepton_gpu_memory_used_bytes{gpu="amd0"}': 2 << 20,
            'lepton_gpu_memory_total_bytes{gpu="amd0"}': 192 << 30,
            'lepton_gpu_ras_errors_total{gpu="amd0",kind="corrected"}': 5,
            'lepton_gpu_ras_errors_total{gpu="amd0",kind="uncorrected"}': 1,
        }
    )
    assert len(found) == 10
    source.close()
    source.close()
    assert library.num_open == 0


def test_a_file_that_goes_away_is_an_error_of_that_source(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.current": "1\n"}
    place = node(tmp_path, files)
    source = opened(open_cgroup, place)
    os.truncate(tmp_path / "sys/fs/cgroup/memory.current", 0)
    with pytest.raises(ValueError):
        said(source, place)
    source.close()
