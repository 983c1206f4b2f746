"""What is asked of an NVIDIA device: each field a pure reading of NVML's answers, in base units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

Values = list[tuple[str, tuple[tuple[str, str], ...], float]]
"""Metric, labels beside ``gpu``, value."""

_PERCENT = 0.01
_MILLI = 1e-3
_HERTZ_PER_MHZ = 1e6
_BYTES_PER_KIB = 1024.0
_ALL_LINKS = 0xFFFFFFFF  # as scope of a link's field: the sum over all links (nvml.h, nvmlFieldValue_t)
_MAX_LINKS = 18  # NVLink 4 and 5 (H100, B200)
_MAX_PROCESSES = 16  # a device shared by more is a development machine, where who uses what matters less
REASONS: Mapping[str, int] = MappingProxyType(
    {
        "sw_power_cap": 0x4,
        "hw_slowdown": 0x8,
        "sync_boost": 0x10,
        "sw_thermal": 0x20,
        "hw_thermal": 0x40,
        "hw_power_brake": 0x80,
    }
)
"""Bits of the clocks' event reasons that hold work down (nvml.h); idle and user settings are no fault."""


@dataclass(frozen=True, slots=True)
class Device:
    """The library and the handle of one device."""

    nvml: Any
    handle: Any


Field = Callable[[Device], Values]


def _load(device: Device) -> Values:
    rates = device.nvml.nvmlDeviceGetUtilizationRates(device.handle)
    return [
        ("lepton_gpu_utilization_ratio", (), rates.gpu * _PERCENT),
        ("lepton_gpu_memory_utilization_ratio", (), rates.memory * _PERCENT),
    ]


def _memory(device: Device) -> Values:
    memory = device.nvml.nvmlDeviceGetMemoryInfo(device.handle)
    return [
        ("lepton_gpu_memory_used_bytes", (), float(memory.used)),
        ("lepton_gpu_memory_free_bytes", (), float(memory.free)),
        ("lepton_gpu_memory_total_bytes", (), float(memory.total)),
    ]


def _power(device: Device) -> Values:
    return [("lepton_gpu_power_watts", (), device.nvml.nvmlDeviceGetPowerUsage(device.handle) * _MILLI)]


def _temperature(device: Device) -> Values:
    nvml = device.nvml
    try:
        celsius = nvml.nvmlDeviceGetTemperatureV(device.handle, nvml.NVML_TEMPERATURE_GPU)
    except (nvml.NVMLError_FunctionNotFound, AttributeError):  # drivers or bindings before 570
        celsius = nvml.nvmlDeviceGetTemperature(device.handle, nvml.NVML_TEMPERATURE_GPU)
    return [("lepton_gpu_temperature_celsius", (), float(celsius))]


def _clocks(device: Device) -> Values:
    nvml = device.nvml
    sm_mhz = nvml.nvmlDeviceGetClockInfo(device.handle, nvml.NVML_CLOCK_SM)
    memory_mhz = nvml.nvmlDeviceGetClockInfo(device.handle, nvml.NVML_CLOCK_MEM)
    return [
        ("lepton_gpu_sm_clock_hertz", (), sm_mhz * _HERTZ_PER_MHZ),
        ("lepton_gpu_memory_clock_hertz", (), memory_mhz * _HERTZ_PER_MHZ),
    ]


def _throttling(device: Device) -> Values:
    nvml = device.nvml
    try:
        bits = nvml.nvmlDeviceGetCurrentClocksEventReasons(device.handle)
    except (nvml.NVMLError_FunctionNotFound, AttributeError):  # the name before driver 535
        bits = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(device.handle)
    return [
        ("lepton_gpu_throttled", (("reason", reason),), float(bool(bits & bit)))
        for reason, bit in REASONS.items()
    ]


def _power_limit(device: Device) -> Values:
    watts = device.nvml.nvmlDeviceGetEnforcedPowerLimit(device.handle) * _MILLI
    return [("lepton_gpu_power_limit_watts", (), watts)]


def _energy(device: Device) -> Values:
    joules = device.nvml.nvmlDeviceGetTotalEnergyConsumption(device.handle) * _MILLI
    return [("lepton_gpu_energy_joules_total", (), joules)]


def _memory_temperature(device: Device) -> Values:
    nvml = device.nvml
    return [
        ("lepton_gpu_memory_temperature_celsius", (), value)
        for value in _field_values(device, [nvml.NVML_FI_DEV_MEMORY_TEMP])
    ]


def _fan(device: Device) -> Values:
    return [("lepton_gpu_fan_ratio", (), device.nvml.nvmlDeviceGetFanSpeed(device.handle) * _PERCENT)]


def _ecc(device: Device) -> Values:
    nvml = device.nvml
    found: Values = [("lepton_gpu_ecc_enabled", (), float(nvml.nvmlDeviceGetEccMode(device.handle)[0]))]
    kinds = {"corrected": nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED}
    kinds["uncorrected"] = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
    spans = {"volatile": nvml.NVML_VOLATILE_ECC, "aggregate": nvml.NVML_AGGREGATE_ECC}
    for kind, kind_number in kinds.items():
        for span, span_number in spans.items():
            count = nvml.nvmlDeviceGetTotalEccErrors(device.handle, kind_number, span_number)
            labels = (("kind", kind), ("span", span))
            found.append(("lepton_gpu_ecc_errors_total", labels, float(count)))
    return found


def _retired(device: Device) -> Values:
    nvml = device.nvml
    causes = {
        "single_bit": nvml.NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS,
        "double_bit": nvml.NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR,
    }
    found: Values = [
        ("lepton_gpu_retired_pages", (("cause", name),), float(len(_pages(device, cause))))
        for name, cause in causes.items()
    ]
    pending = nvml.nvmlDeviceGetRetiredPagesPendingStatus(device.handle)
    return [*found, ("lepton_gpu_retired_pages_pending", (), float(pending))]


def _pages(device: Device, cause: int) -> list[int]:
    pages: list[int] = device.nvml.nvmlDeviceGetRetiredPages(device.handle, cause)
    return pages


def _remapped(device: Device) -> Values:
    corrected, uncorrected, pending, failed = device.nvml.nvmlDeviceGetRemappedRows(device.handle)
    return [
        ("lepton_gpu_remapped_rows", (("cause", "corrected"),), float(corrected)),
        ("lepton_gpu_remapped_rows", (("cause", "uncorrected"),), float(uncorrected)),
        ("lepton_gpu_remapped_rows_pending", (), float(pending)),
        ("lepton_gpu_remapped_rows_failed", (), float(failed)),
    ]


def _replays(device: Device) -> Values:
    count = device.nvml.nvmlDeviceGetPcieReplayCounter(device.handle)
    return [("lepton_gpu_pcie_replays_total", (), float(count))]


def _links(device: Device) -> Values:
    nvml = device.nvml
    kinds = {
        "replay": nvml.NVML_NVLINK_ERROR_DL_REPLAY,
        "recovery": nvml.NVML_NVLINK_ERROR_DL_RECOVERY,
        "crc_flit": nvml.NVML_NVLINK_ERROR_DL_CRC_FLIT,
        "crc_data": nvml.NVML_NVLINK_ERROR_DL_CRC_DATA,
    }
    found: Values = []
    totals: dict[str, float] = {}
    for link in range(_MAX_LINKS):
        try:
            is_up = nvml.nvmlDeviceGetNvLinkState(device.handle, link)
        except (nvml.NVMLError_NotSupported, nvml.NVMLError_InvalidArgument):
            break  # no such link: the device has fewer, or none
        found.append(("lepton_gpu_nvlink_up", (("link", str(link)),), float(is_up)))
        of_link = 0.0
        for kind, number in kinds.items():
            try:
                count = float(nvml.nvmlDeviceGetNvLinkErrorCounter(device.handle, link, number))
            except (nvml.NVMLError_NotSupported, nvml.NVMLError_InvalidArgument):
                continue  # link generations count different kinds
            totals[kind] = totals.get(kind, 0.0) + count
            of_link += count
        if of_link:  # 18 links of 8 devices, nearly always 0: only those with errors become series
            found.append(("lepton_gpu_nvlink_link_errors_total", (("link", str(link)),), of_link))
    if not found:
        raise nvml.NVMLError(nvml.NVML_ERROR_NOT_SUPPORTED)
    return found + [
        ("lepton_gpu_nvlink_errors_total", (("kind", kind),), count) for kind, count in totals.items()
    ]


def _link_bytes(device: Device) -> Values:
    nvml = device.nvml
    fields = [nvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, nvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX]
    values = _field_values(device, [(field, _ALL_LINKS) for field in fields])
    names = ("lepton_gpu_nvlink_transmit_bytes_total", "lepton_gpu_nvlink_receive_bytes_total")
    return [(name, (), value * _BYTES_PER_KIB) for name, value in zip(names, values, strict=True)]


def _processes(device: Device) -> Values:
    processes = device.nvml.nvmlDeviceGetComputeRunningProcesses(device.handle)
    found: Values = [("lepton_gpu_processes", (), float(len(processes)))]
    largest = sorted(processes, key=lambda process: -(process.usedGpuMemory or 0))[:_MAX_PROCESSES]
    for process in largest:
        if process.usedGpuMemory is not None:  # not told inside some containers
            labels = (("pid", str(process.pid)),)
            found.append(("lepton_gpu_process_memory_bytes", labels, float(process.usedGpuMemory)))
    return found


def _field_values(device: Device, fields: list[Any]) -> list[float]:
    """The values of fields; the first one that fails raises its own error.

    ``nvmlDeviceGetFieldValues`` itself succeeds even where every field in it failed.
    """
    nvml = device.nvml
    found = []
    for field in nvml.nvmlDeviceGetFieldValues(device.handle, fields):
        if field.nvmlReturn != nvml.NVML_SUCCESS:
            raise nvml.NVMLError(field.nvmlReturn)
        found.append(value_of(field.valueType, field.value))
    return found


def value_of(value_type: int, value: Any) -> float:
    """The member of NVML's union that the type says is meant (nvmlValueType_t)."""
    members = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
    return float(getattr(value, members[value_type]))


FAST: Mapping[str, Field] = MappingProxyType(
    {
        "load": _load, "memory": _memory, "power": _power, "temperature": _temperature, "clocks": _clocks,
        "throttling": _throttling,
    }
)  # fmt: skip
"""Asked for at every sample."""

SLOW: Mapping[str, Field] = MappingProxyType(
    {
        "power limit": _power_limit, "energy": _energy, "memory temperature": _memory_temperature, "fan": _fan,
        "ecc": _ecc, "retired pages": _retired, "remapped rows": _remapped, "pcie replays": _replays,
        "nvlink": _links, "nvlink bytes": _link_bytes, "processes": _processes,
    }
)  # fmt: skip
"""Asked for every few seconds."""
