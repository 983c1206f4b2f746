"""A scripted NVML: what the module ``pynvml`` of nvidia-ml-py does, for devices that exist only in a test.

Same names, arguments, structures, error codes and error classes as nvidia-ml-py 13; a test compares them with the real
module. Devices are plain objects: change one, and the next answer is another.

>>> nvml = FakeNvml([FakeDevice(temperature_celsius=66)])
>>> nvml.nvmlInit()
>>> handle = nvml.nvmlDeviceGetHandleByIndex(0)
>>> nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
66
>>> nvml.devices[0].is_lost = True
>>> nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
Traceback (most recent call last):
leptonai.testing.nvml_types.NVMLError_GpuIsLost: GPU is lost
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from leptonai.testing.nvml_types import (
    CONSTANTS,
    ERROR_CLASSES,
    ERRORS,
    Body,
    NVMLError,
    NVMLLibraryMismatchError,
    c_nvmlDevice_t,
    c_nvmlEventData_t,
    c_nvmlEventSet_t,
    c_nvmlFieldValue_t,
    c_nvmlMemory_t,
    c_nvmlUtilization_t,
    nvmlFriendlyObject,
    nvmlPciInfo_t,
)

_ALL_LINKS = 0xFFFFFFFF  # as scope of a field: all links together
_NO_INSTANCE = 0xFFFFFFFF


@dataclass(slots=True)
class FakeLink:
    """One NVLink; ``errors`` by number of the counter, traffic in KiB."""

    is_up: bool = True
    errors: dict[int, int] = field(default_factory=lambda: {0: 0, 1: 0, 2: 0, 3: 0})
    sent_kib: int = 0
    received_kib: int = 0


@dataclass(slots=True, kw_only=True)
class FakeDevice:
    """A device that answers whatever its fields say now; the defaults are an idle H100's.

    Args:
        not_supported: functions (``nvmlDeviceGetFanSpeed``) that this device does not have.
        no_permission: functions that this user may not call.
        failing: functions that fail once with the code, and then work again.
        ecc_errors: by kind of error and span, as the constants number them.
        memory_celsius: None: the device does not measure it.
        is_lost: it has fallen off the bus: every call that concerns it fails.
        needs_reset: every call that concerns it fails with "reset required".
    """

    name: str = "NVIDIA H100 80GB HBM3"
    uuid: str = "GPU-5f4a1d0e-0000-4000-8000-000000000000"
    bus_id: str = "00000000:3B:00.0"
    load_percent: int = 0
    memory_load_percent: int = 0
    memory_total_bytes: int = 80 << 30
    memory_used_bytes: int = 0
    power_milliwatts: int = 70_000
    power_limit_milliwatts: int = 700_000
    energy_millijoules: int = 0
    temperature_celsius: int = 30
    memory_celsius: int | None = 35
    fan_percent: int = 0
    sm_mhz: int = 345
    memory_mhz: int = 2619
    event_reasons: int = 1  # idle
    ecc_mode: tuple[int, int] = (1, 1)
    ecc_errors: dict[tuple[int, int], int] = field(default_factory=dict)
    retired_pages: dict[int, list[int]] = field(default_factory=dict)
    retired_pending: int = 0
    remapped_rows: tuple[int, int, int, int] = (0, 0, 0, 0)
    pcie_replays: int = 0
    links: list[FakeLink] = field(default_factory=list)
    processes: list[tuple[int, int | None]] = field(default_factory=list)
    not_supported: set[str] = field(default_factory=lambda: {"nvmlDeviceGetFanSpeed"})
    no_permission: set[str] = field(default_factory=set)
    failing: dict[str, int] = field(default_factory=dict)
    is_lost: bool = False
    needs_reset: bool = False


@dataclass(slots=True)
class _EventSet:
    kinds: dict[int, int] = field(default_factory=dict)  # device number -> kinds registered
    queue: deque[tuple[int, int, int]] = field(default_factory=deque)


class FakeNvml:
    """An object that stands for the module ``pynvml``.

    Args:
        devices: in order of index; they may be changed at any time.
        driver_version: what the driver calls itself.
        missing: functions that this version of the driver does not have.
        is_loaded: whether the driver is; false: initialising fails.
    """

    NVMLError = NVMLError
    NVMLLibraryMismatchError = NVMLLibraryMismatchError

    def __init__(
        self,
        devices: Sequence[FakeDevice] = (),
        *,
        driver_version: str = "570.124.06",
        missing: Sequence[str] = (),
        is_loaded: bool = True,
    ) -> None:
        self.devices = list(devices)
        self.driver_version = driver_version
        self.missing = set(missing)
        self.is_loaded = is_loaded
        self.num_open = 0
        self.calls: list[str] = []
        self._bodies = [Body() for _ in self.devices]
        self._sets: dict[int, tuple[Body, _EventSet]] = {}

    def __getattr__(self, name: str) -> Any:
        if name in CONSTANTS:
            return CONSTANTS[name]
        if name in ERROR_CLASSES:
            return ERROR_CLASSES[name]
        raise AttributeError(name)

    def happens(self, index: int, kind: int, data: int = 0) -> None:
        """An event befalls a device: sets that registered for it will tell it."""
        for _, each in self._sets.values():
            if each.kinds.get(index, 0) & kind:
                each.queue.append((index, kind, data))

    def xid(self, index: int, number: int) -> None:
        """The driver reports an Xid."""
        self.happens(index, CONSTANTS["nvmlEventTypeXidCriticalError"], number)

    # What follows has pynvml's names, arguments and answers.

    def nvmlInit(self) -> None:
        if not self.is_loaded:
            raise NVMLError(ERRORS["DRIVER_NOT_LOADED"])
        self.num_open += 1

    def nvmlShutdown(self) -> None:
        self._system("nvmlShutdown")
        self.num_open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        self._system("nvmlSystemGetDriverVersion")
        return self.driver_version

    def nvmlDeviceGetCount(self) -> int:
        self._system("nvmlDeviceGetCount")
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        self._system("nvmlDeviceGetHandleByIndex")
        if not 0 <= index < len(self.devices):
            raise NVMLError(ERRORS["INVALID_ARGUMENT"])
        self._answerable("nvmlDeviceGetHandleByIndex", self.devices[index])
        return ctypes.cast(ctypes.pointer(self._bodies[index]), c_nvmlDevice_t)

    def nvmlDeviceGetIndex(self, handle: Any) -> int:
        self._device("nvmlDeviceGetIndex", handle)
        return self._index(handle)

    def nvmlDeviceGetUUID(self, handle: Any) -> str:
        return self._device("nvmlDeviceGetUUID", handle).uuid

    def nvmlDeviceGetName(self, handle: Any) -> str:
        return self._device("nvmlDeviceGetName", handle).name

    def nvmlDeviceGetPciInfo(self, handle: Any) -> nvmlPciInfo_t:
        bus_id = self._device("nvmlDeviceGetPciInfo", handle).bus_id
        domain, bus, rest = bus_id.split(":")
        return nvmlPciInfo_t(
            busIdLegacy=bus_id[4:].encode(), domain=int(domain, 16), bus=int(bus, 16),
            device=int(rest.partition(".")[0], 16), busId=bus_id.encode(),
        )  # fmt: skip

    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> c_nvmlUtilization_t:
        device = self._device("nvmlDeviceGetUtilizationRates", handle)
        return c_nvmlUtilization_t(gpu=device.load_percent, memory=device.memory_load_percent)

    def nvmlDeviceGetMemoryInfo(self, handle: Any, version: int | None = None) -> c_nvmlMemory_t:
        device = self._device("nvmlDeviceGetMemoryInfo", handle)
        if version:
            raise NVMLError(ERRORS["FUNCTION_NOT_FOUND"])  # the second version is not imitated
        free = device.memory_total_bytes - device.memory_used_bytes
        return c_nvmlMemory_t(total=device.memory_total_bytes, free=free, used=device.memory_used_bytes)

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:
        return self._device("nvmlDeviceGetPowerUsage", handle).power_milliwatts

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Any) -> int:
        return self._device("nvmlDeviceGetEnforcedPowerLimit", handle).power_limit_milliwatts

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int:
        return self._device("nvmlDeviceGetTotalEnergyConsumption", handle).energy_millijoules

    def nvmlDeviceGetTemperatureV(self, handle: Any, sensor: int, version: int = 0x100000C) -> int:
        device = self._device("nvmlDeviceGetTemperatureV", handle)
        return self._of(sensor, {CONSTANTS["NVML_TEMPERATURE_GPU"]: device.temperature_celsius})

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int:
        device = self._device("nvmlDeviceGetTemperature", handle)
        return self._of(sensor, {CONSTANTS["NVML_TEMPERATURE_GPU"]: device.temperature_celsius})

    def nvmlDeviceGetClockInfo(self, handle: Any, type: int) -> int:
        device = self._device("nvmlDeviceGetClockInfo", handle)
        return self._of(type, {0: device.sm_mhz, 1: device.sm_mhz, 2: device.memory_mhz})

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any) -> int:
        return self._device("nvmlDeviceGetCurrentClocksEventReasons", handle).event_reasons

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: Any) -> int:
        return self._device("nvmlDeviceGetCurrentClocksThrottleReasons", handle).event_reasons

    def nvmlDeviceGetFanSpeed(self, handle: Any) -> int:
        return self._device("nvmlDeviceGetFanSpeed", handle).fan_percent

    def nvmlDeviceGetEccMode(self, handle: Any) -> list[int]:
        return list(self._device("nvmlDeviceGetEccMode", handle).ecc_mode)

    def nvmlDeviceGetTotalEccErrors(self, handle: Any, errorType: int, counterType: int) -> int:
        device = self._device("nvmlDeviceGetTotalEccErrors", handle)
        if not device.ecc_mode[0]:
            raise NVMLError(ERRORS["NOT_SUPPORTED"])
        return device.ecc_errors.get((errorType, counterType), 0)

    def nvmlDeviceGetRetiredPages(self, device: Any, sourceFilter: int) -> list[int]:
        return list(self._device("nvmlDeviceGetRetiredPages", device).retired_pages.get(sourceFilter, []))

    def nvmlDeviceGetRetiredPagesPendingStatus(self, device: Any) -> int:
        return self._device("nvmlDeviceGetRetiredPagesPendingStatus", device).retired_pending

    def nvmlDeviceGetRemappedRows(self, device: Any) -> tuple[int, int, int, int]:
        return self._device("nvmlDeviceGetRemappedRows", device).remapped_rows

    def nvmlDeviceGetPcieReplayCounter(self, handle: Any) -> int:
        return self._device("nvmlDeviceGetPcieReplayCounter", handle).pcie_replays

    def nvmlDeviceGetNvLinkState(self, device: Any, link: int) -> int:
        return int(self._link("nvmlDeviceGetNvLinkState", device, link).is_up)

    def nvmlDeviceGetNvLinkErrorCounter(self, device: Any, link: int, counter: int) -> int:
        found = self._link("nvmlDeviceGetNvLinkErrorCounter", device, link)
        return self._of(counter, found.errors, otherwise="NOT_SUPPORTED")

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> list[nvmlFriendlyObject]:
        device = self._device("nvmlDeviceGetComputeRunningProcesses", handle, mismatch=True)
        return [
            nvmlFriendlyObject(
                {
                    "pid": pid,
                    "usedGpuMemory": used,
                    "gpuInstanceId": _NO_INSTANCE,
                    "computeInstanceId": _NO_INSTANCE,
                }
            )
            for pid, used in device.processes
        ]

    def nvmlDeviceGetFieldValues(self, handle: Any, fieldIds: Sequence[Any]) -> Any:
        device = self._device("nvmlDeviceGetFieldValues", handle)
        values = (c_nvmlFieldValue_t * len(fieldIds))()
        for value, wanted in zip(values, fieldIds, strict=True):
            value.fieldId, value.scopeId = wanted if isinstance(wanted, tuple) else (wanted, 0)
            self._fill(device, value)
        return values

    def nvmlEventSetCreate(self) -> Any:
        self._system("nvmlEventSetCreate")
        body = Body()
        self._sets[ctypes.addressof(body)] = (body, _EventSet())
        return ctypes.cast(ctypes.pointer(body), c_nvmlEventSet_t)

    def nvmlEventSetFree(self, eventSet: Any) -> None:
        self._system("nvmlEventSetFree")
        self._set(eventSet)
        del self._sets[ctypes.addressof(eventSet.contents)]

    def nvmlDeviceRegisterEvents(self, handle: Any, eventTypes: int, eventSet: Any) -> None:
        self._device("nvmlDeviceRegisterEvents", handle)
        kinds = self._set(eventSet).kinds
        index = self._index(handle)
        kinds[index] = kinds.get(index, 0) | eventTypes

    def nvmlEventSetWait_v2(self, eventSet: Any, timeoutms: int) -> c_nvmlEventData_t:
        self._system("nvmlEventSetWait_v2")
        found = self._set(eventSet)
        if not found.queue:
            lost = any(self.devices[index].is_lost for index in found.kinds)
            raise NVMLError(ERRORS["GPU_IS_LOST" if lost else "TIMEOUT"])
        index, kind, data = found.queue.popleft()
        device = ctypes.cast(ctypes.pointer(self._bodies[index]), c_nvmlDevice_t)
        return c_nvmlEventData_t(
            device=device, eventType=kind, eventData=data, gpuInstanceId=_NO_INSTANCE, computeInstanceId=_NO_INSTANCE
        )  # fmt: skip

    def _system(self, function: str) -> None:
        self.calls.append(function)
        if function in self.missing:
            raise NVMLError(ERRORS["FUNCTION_NOT_FOUND"])
        if not self.num_open:
            raise NVMLError(ERRORS["UNINITIALIZED"])

    def _device(self, function: str, handle: Any, *, mismatch: bool = False) -> FakeDevice:
        if mismatch and function in self.missing:
            raise NVMLLibraryMismatchError(f"{function} is not that of the driver")
        self._system(function)
        device = self.devices[self._index(handle)]
        self._answerable(function, device)
        return device

    def _answerable(self, function: str, device: FakeDevice) -> None:
        problems: tuple[tuple[Callable[[], bool], str], ...] = (
            (lambda: device.is_lost, "GPU_IS_LOST"),
            (lambda: device.needs_reset, "RESET_REQUIRED"),
            (lambda: function in device.not_supported, "NOT_SUPPORTED"),
            (lambda: function in device.no_permission, "NO_PERMISSION"),
        )
        for is_so, code in problems:
            if is_so():
                raise NVMLError(ERRORS[code])
        if function in device.failing:
            raise NVMLError(device.failing.pop(function))

    def _index(self, handle: Any) -> int:
        address = ctypes.addressof(handle.contents)
        for index, body in enumerate(self._bodies):
            if ctypes.addressof(body) == address:
                return index
        raise NVMLError(ERRORS["INVALID_ARGUMENT"])

    def _set(self, handle: Any) -> _EventSet:
        found = self._sets.get(ctypes.addressof(handle.contents))
        if found is None:
            raise NVMLError(ERRORS["INVALID_ARGUMENT"])
        return found[1]

    def _link(self, function: str, handle: Any, link: int) -> FakeLink:
        device = self._device(function, handle)
        if not device.links:
            raise NVMLError(ERRORS["NOT_SUPPORTED"])
        if not 0 <= link < len(device.links):
            raise NVMLError(ERRORS["INVALID_ARGUMENT"])
        return device.links[link]

    def _of(self, key: int, values: Mapping[int, int], *, otherwise: str = "INVALID_ARGUMENT") -> int:
        if key not in values:
            raise NVMLError(ERRORS[otherwise])
        return values[key]

    def _fill(self, device: FakeDevice, value: Any) -> None:
        links = (
            device.links if value.scopeId == _ALL_LINKS else device.links[value.scopeId : value.scopeId + 1]
        )
        if value.fieldId == CONSTANTS["NVML_FI_DEV_MEMORY_TEMP"] and device.memory_celsius is not None:
            value.valueType = CONSTANTS["NVML_VALUE_TYPE_UNSIGNED_INT"]
            value.value.uiVal = device.memory_celsius
        elif value.fieldId == CONSTANTS["NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX"] and links:
            value.valueType = CONSTANTS["NVML_VALUE_TYPE_UNSIGNED_LONG_LONG"]
            value.value.ullVal = sum(link.sent_kib for link in links)
        elif value.fieldId == CONSTANTS["NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX"] and links:
            value.valueType = CONSTANTS["NVML_VALUE_TYPE_UNSIGNED_LONG_LONG"]
            value.value.ullVal = sum(link.received_kib for link in links)
        else:
            value.nvmlReturn = ERRORS["NOT_SUPPORTED"]
