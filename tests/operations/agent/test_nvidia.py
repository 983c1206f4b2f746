"""NVIDIA devices, driven by a scripted NVML that is compared with the real bindings first."""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from leptonai.core.clock import FakeClock
from leptonai.operations.agent.catalogue import CATALOGUE
from leptonai.operations.agent.nvidia import RETRY_LOST_SECONDS, SLOW_SECONDS, NvidiaSource, open_nvidia
from leptonai.operations.agent.source import Absent, Place, Reading, SeriesTable
from leptonai.operations.faults.catalogue import shipped
from leptonai.testing.nvml import FakeDevice, FakeLink, FakeNvml
from leptonai.testing.nvml_types import CONSTANTS, ERROR_CLASSES, ERRORS, STRUCTURES, NVMLError

GB = 1 << 30


class Node:
    """A source on scripted devices, and what it says by series."""

    def __init__(self, nvml: FakeNvml) -> None:
        self.nvml, self.clock, self.table = nvml, FakeClock(start_seconds=1000.0), SeriesTable()
        source = open_nvidia(Place(table=self.table, proc=Path("/nowhere")), nvml=nvml, clock=self.clock)
        assert isinstance(source, NvidiaSource)
        self.source = source

    def read(self) -> dict[str, float]:
        readings: list[Reading] = []
        self.source.read(readings)
        found = {repr(self.table.series[key]): value for key, value in readings}
        assert len(found) == len(readings), "a series was read twice"
        assert all(self.table.series[key].name in CATALOGUE for key, _ in readings)
        return found


def calls_of(node: Node, function: str) -> int:
    return node.nvml.calls.count(function)


def functions_of_the_fake() -> Iterator[str]:
    for name in dir(FakeNvml):
        if name.startswith("nvml"):
            yield name


def test_the_script_has_the_numbers_structures_and_errors_of_the_real_bindings() -> None:
    real = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    for name, value in CONSTANTS.items():
        assert getattr(real, name) == value, name
    for structure in STRUCTURES:
        theirs = getattr(real, structure.__name__)
        assert ctypes.sizeof(structure) == ctypes.sizeof(theirs)
        ours = [(field[0], getattr(structure, field[0]).offset) for field in structure._fields_]
        assert ours == [(field[0], getattr(theirs, field[0]).offset) for field in theirs._fields_]
    for name, kind in ERROR_CLASSES.items():
        theirs = getattr(real, name)
        code = next(code for code, made in NVMLError.by_value.items() if made is kind)
        assert issubclass(theirs, real.NVMLError)
        assert type(real.NVMLError(code)) is theirs
        assert type(NVMLError(code)) is kind
        if code in real.NVMLError._errcode_to_string:
            assert str(NVMLError(code)) == str(real.NVMLError(code))
    assert not issubclass(real.NVMLLibraryMismatchError, real.NVMLError)


@pytest.mark.parametrize("name", functions_of_the_fake())
def test_the_script_is_called_as_the_real_bindings_are(name: str) -> None:
    real = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    ours = list(inspect.signature(getattr(FakeNvml([]), name)).parameters.values())
    theirs = list(inspect.signature(getattr(real, name)).parameters.values())
    assert [(each.name, each.kind) for each in ours] == [(each.name, each.kind) for each in theirs]
    assert [each.default for each in ours] == [each.default for each in theirs]


def test_the_source_asks_only_what_the_real_bindings_have() -> None:
    real = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    node = Node(FakeNvml([FakeDevice(links=[FakeLink()])]))
    node.read()
    assert all(hasattr(real, function) for function in node.nvml.calls)


def test_every_value_arrives_in_base_units() -> None:
    device = FakeDevice(
        load_percent=87, memory_load_percent=40, memory_total_bytes=80 * GB, memory_used_bytes=20 * GB,
        power_milliwatts=650_500, power_limit_milliwatts=700_000, energy_millijoules=5_000, temperature_celsius=71,
        memory_celsius=82, fan_percent=30, sm_mhz=1980, memory_mhz=2619, event_reasons=0x1 | 0x4 | 0x40,
        ecc_errors={(0, 0): 3, (1, 1): 2}, retired_pages={1: [0x1000, 0x2000]}, retired_pending=1,
        remapped_rows=(4, 1, 1, 0), pcie_replays=9, not_supported=set(),
        links=[FakeLink(sent_kib=10, received_kib=5), FakeLink(is_up=False, errors={0: 2, 2: 7}, sent_kib=1)],
        processes=[(77, 3 * GB), (78, None)],
    )  # fmt: skip
    found = Node(FakeNvml([device])).read()
    info = 'driver="570.124.06",gpu="0",name="NVIDIA H100 80GB HBM3",pci="0000:3b:00",uuid="' + device.uuid
    expected = {
        "lost": 0, "utilization_ratio": 0.87, "memory_utilization_ratio": 0.4, "memory_used_bytes": 20 * GB,
        "memory_free_bytes": 60 * GB, "memory_total_bytes": 80 * GB, "power_watts": 650.5, "power_limit_watts": 700,
        "energy_joules_total": 5, "temperature_celsius": 71, "memory_temperature_celsius": 82, "fan_ratio": 0.3,
        "sm_clock_hertz": 1.98e9, "memory_clock_hertz": 2.619e9, "ecc_enabled": 1, "retired_pages_pending": 1,
        "remapped_rows_pending": 1, "remapped_rows_failed": 0, "pcie_replays_total": 9, "processes": 2,
        "nvlink_transmit_bytes_total": 11 * 1024, "nvlink_receive_bytes_total": 5 * 1024,
    }  # fmt: skip
    labelled = {
        f'lepton_gpu_info{{{info}"}}': 1,
        **{f'lepton_gpu_throttled{{gpu="0",reason="{reason}"}}': float(reason in ("sw_power_cap", "hw_thermal"))
           for reason in ("sw_power_cap", "hw_slowdown", "sync_boost", "sw_thermal", "hw_thermal", "hw_power_brake")},
        **{f'lepton_gpu_ecc_errors_total{{gpu="0",kind="{kind}",span="{span}"}}': count
           for kind, span, count in (("corrected", "volatile", 3), ("corrected", "aggregate", 0),
                                     ("uncorrected", "volatile", 0), ("uncorrected", "aggregate", 2))},
        'lepton_gpu_retired_pages{cause="single_bit",gpu="0"}': 0,
        'lepton_gpu_retired_pages{cause="double_bit",gpu="0"}': 2,
        'lepton_gpu_remapped_rows{cause="corrected",gpu="0"}': 4,
        'lepton_gpu_remapped_rows{cause="uncorrected",gpu="0"}': 1,
        'lepton_gpu_nvlink_up{gpu="0",link="0"}': 1,
        'lepton_gpu_nvlink_up{gpu="0",link="1"}': 0,
        'lepton_gpu_nvlink_link_errors_total{gpu="0",link="1"}': 9,
        **{f'lepton_gpu_nvlink_errors_total{{gpu="0",kind="{kind}"}}': count
           for kind, count in (("replay", 2), ("recovery", 0), ("crc_flit", 7), ("crc_data", 0))},
        'lepton_gpu_process_memory_bytes{gpu="0",pid="77"}': 3 * GB,
    }  # fmt: skip
    labelled |= {f'lepton_gpu_{name}{{gpu="0"}}': value for name, value in expected.items()}
    assert found == pytest.approx(labelled)


def test_what_a_device_does_not_have_is_asked_for_once() -> None:
    device = FakeDevice(
        memory_celsius=None, not_supported={"nvmlDeviceGetFanSpeed", "nvmlDeviceGetRemappedRows"}
    )
    device.no_permission = {"nvmlDeviceGetTotalEnergyConsumption"}
    node = Node(FakeNvml([device]))
    for _ in range(3):
        found = node.read()
        node.clock.advance(SLOW_SECONDS)
    for absent in ("fan", "remapped", "energy", "memory_temperature", "nvlink"):
        assert not any(absent in name for name in found), absent
    for function in (
        "nvmlDeviceGetFanSpeed",
        "nvmlDeviceGetRemappedRows",
        "nvmlDeviceGetTotalEnergyConsumption",
    ):
        assert calls_of(node, function) == 1
    assert calls_of(node, "nvmlDeviceGetEccMode") == 3


def test_a_device_without_memory_correction_still_tells_the_rest() -> None:
    found = Node(FakeNvml([FakeDevice(ecc_mode=(0, 0))])).read()
    assert not any("ecc_errors" in name for name in found)
    assert found['lepton_gpu_temperature_celsius{gpu="0"}'] == 30


def test_an_older_driver_is_asked_by_the_older_names() -> None:
    missing = ["nvmlDeviceGetTemperatureV", "nvmlDeviceGetCurrentClocksEventReasons"]
    found = Node(FakeNvml([FakeDevice(temperature_celsius=55, event_reasons=0x8)], missing=missing)).read()
    assert found['lepton_gpu_temperature_celsius{gpu="0"}'] == 55
    assert found['lepton_gpu_throttled{gpu="0",reason="hw_slowdown"}'] == 1


def test_a_hiccup_of_one_field_costs_that_value_once() -> None:
    device = FakeDevice()
    node = Node(FakeNvml([device]))
    device.failing = {"nvmlDeviceGetPowerUsage": ERRORS["TIMEOUT"]}
    assert 'lepton_gpu_power_watts{gpu="0"}' not in node.read()
    assert node.read()['lepton_gpu_power_watts{gpu="0"}'] == 70


def test_slow_fields_are_repeated_between_questions() -> None:
    device = FakeDevice()
    node = Node(FakeNvml([device]))
    node.read()
    device.pcie_replays, device.load_percent = 5, 50
    between = node.read()
    assert between['lepton_gpu_pcie_replays_total{gpu="0"}'] == 0
    assert between['lepton_gpu_utilization_ratio{gpu="0"}'] == 0.5
    node.clock.advance(SLOW_SECONDS)
    assert node.read()['lepton_gpu_pcie_replays_total{gpu="0"}'] == 5


def test_an_xid_is_counted_and_told_as_the_fault_catalogue_reads_it() -> None:
    node = Node(FakeNvml([FakeDevice(), FakeDevice(bus_id="00000000:AF:00.0", uuid="GPU-b")]))
    node.read()
    node.nvml.xid(1, 79)
    node.nvml.xid(1, 79)
    node.nvml.xid(0, 31)
    found = node.read()
    assert found['lepton_gpu_xid_errors_total{gpu="1",xid="79"}'] == 2
    assert found['lepton_gpu_xid_errors_total{gpu="0",xid="31"}'] == 1
    records = node.source.records()
    assert [record.severity for record in records] == ["critical"] * 3
    assert dict(records[0].labels) == {"gpu": "1", "pci": "0000:af:00", "uuid": "GPU-b"}
    match = shipped().match(records[0].message)
    assert match is not None
    assert match.fault.id == "xid_79"
    assert node.source.records() == []
    assert node.read()['lepton_gpu_xid_errors_total{gpu="1",xid="79"}'] == 2


def test_a_double_bit_error_is_told() -> None:
    node = Node(FakeNvml([FakeDevice()]))
    node.nvml.happens(0, CONSTANTS["nvmlEventTypeDoubleBitEccError"])
    node.read()
    assert [record.message for record in node.source.records()] == ["NVML: double-bit memory error"]


@pytest.mark.parametrize("how", ["is_lost", "needs_reset"])
def test_a_lost_device_is_said_to_be_lost_and_asked_again_later(how: str) -> None:
    lost, other = FakeDevice(uuid="GPU-a"), FakeDevice(uuid="GPU-b")
    node = Node(FakeNvml([lost, other]))
    node.read()
    setattr(lost, how, True)
    found = node.read()
    assert found['lepton_gpu_lost{gpu="0"}'] == 1
    assert found['lepton_gpu_lost{gpu="1"}'] == 0
    assert [name for name in found if 'gpu="0"' in name] == ['lepton_gpu_lost{gpu="0"}']
    (record,) = node.source.records()
    assert record.severity == "critical"
    assert "GPU 0 is lost" in record.message
    node.read()
    assert node.source.records() == []
    setattr(lost, how, False)
    assert node.read()['lepton_gpu_lost{gpu="0"}'] == 1
    node.clock.advance(RETRY_LOST_SECONDS)
    back = node.read()
    assert back['lepton_gpu_lost{gpu="0"}'] == 0
    assert 'lepton_gpu_pcie_replays_total{gpu="0"}' in back


def test_a_device_lost_from_the_start_does_not_hide_the_others() -> None:
    found = Node(FakeNvml([FakeDevice(is_lost=True), FakeDevice(load_percent=10)])).read()
    assert found['lepton_gpu_lost{gpu="0"}'] == 1
    assert found['lepton_gpu_utilization_ratio{gpu="1"}'] == 0.1


def test_no_driver_or_no_device_is_absent_with_a_reason(tmp_path: Path) -> None:
    place = Place(table=SeriesTable(), proc=tmp_path)
    reasons = []
    for nvml in (FakeNvml([FakeDevice()], is_loaded=False), FakeNvml([]), None):
        found = open_nvidia(place, nvml=nvml)
        assert isinstance(found, Absent)
        reasons.append(found.reason)
        if nvml is not None:
            assert nvml.num_open == 0
    assert reasons == [
        "NVML: Driver Not Loaded", "the driver knows no device", "no driver is loaded (/proc/driver/nvidia)",
    ]  # fmt: skip


def test_closing_lets_go_of_the_library_once() -> None:
    node = Node(FakeNvml([FakeDevice()]))
    node.source.close()
    node.source.close()
    assert node.nvml.num_open == 0
    assert calls_of(node, "nvmlEventSetFree") == 1


def test_bindings_newer_than_the_driver_cost_one_field() -> None:
    nvml = FakeNvml([FakeDevice()], missing=["nvmlDeviceGetComputeRunningProcesses"])
    found = Node(nvml).read()
    assert 'lepton_gpu_pcie_replays_total{gpu="0"}' in found
    assert 'lepton_gpu_processes{gpu="0"}' not in found
