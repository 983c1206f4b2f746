"""NVIDIA devices through NVML: load, memory, power, heat, clocks, throttling, errors of memory, bus and links, Xids.

The library is an argument, so that a scripted one (:mod:`leptonai.testing.nvml`) can stand in. A field that a device
does not have is asked for once; a device that is lost is said to be lost, and asked again a minute later.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from leptonai.core.clock import Clock, SystemClock
from leptonai.operations.agent.nvidia_fields import FAST, SLOW, Device, Field
from leptonai.operations.agent.source import Absent, LogRecord, Place, Reading, SeriesTable

SLOW_SECONDS = (
    10.0  # errors, links and limits: rare or slow, and some calls go through the device's own processor
)
RETRY_LOST_SECONDS = 60.0
_MAX_EVENTS = 64  # in one go; the rest waits in the driver


class NvidiaSource:
    """All devices of one NVML.

    Args:
        nvml: the module ``pynvml`` of nvidia-ml-py, initialised, or what behaves like it.

    Raises:
        nvml.NVMLError: the devices cannot be counted.
    """

    name = "nvidia"
    interval_seconds = 0.0

    def __init__(self, place: Place, nvml: Any, *, clock: Clock | None = None) -> None:
        self._nvml = nvml
        self._table = place.table
        self._clock = clock or SystemClock()
        self._devices = [_Watched(nvml, index, place.table) for index in range(nvml.nvmlDeviceGetCount())]
        self._events = self._register()
        self._xids: dict[tuple[str, int], int] = {}
        self._records: list[LogRecord] = []

    def read(self, out: list[Reading]) -> None:
        now = self._clock.monotonic_seconds()
        for device in self._devices:
            before = device.is_lost
            device.read(out, now)
            if device.is_lost and not before:
                self._note("critical", device, f"NVML: GPU {device.gpu} is lost: {device.lost_reason}")
        self._drain()
        for (gpu, xid), count in self._xids.items():
            out.append((self._table.key("lepton_gpu_xid_errors_total", gpu=gpu, xid=str(xid)), float(count)))

    def records(self) -> list[LogRecord]:
        """Xids and losses since the last call."""
        found, self._records = self._records, []
        return found

    def close(self) -> None:
        if self._nvml is not None:
            nvml, self._nvml = self._nvml, None
            if self._events is not None:
                _quietly(nvml, lambda: nvml.nvmlEventSetFree(self._events))
            _quietly(nvml, nvml.nvmlShutdown)

    def _register(self) -> Any:
        nvml = self._nvml
        events = _quietly(nvml, nvml.nvmlEventSetCreate)
        if events is None:
            return None
        kinds = nvml.nvmlEventTypeXidCriticalError | nvml.nvmlEventTypeDoubleBitEccError
        for device in self._devices:
            if device.handle is not None:
                _quietly(nvml, partial(nvml.nvmlDeviceRegisterEvents, device.handle, kinds, events))
        return events

    def _drain(self) -> None:
        nvml = self._nvml
        for _ in range(_MAX_EVENTS if self._events is not None else 0):
            try:
                event = nvml.nvmlEventSetWait_v2(self._events, 0)
            except nvml.NVMLError:  # a timeout: there are no more; a lost device shows in its own fields
                return
            index = _quietly(nvml, partial(nvml.nvmlDeviceGetIndex, event.device))
            device = self._devices[index] if index is not None and index < len(self._devices) else None
            if event.eventType == nvml.nvmlEventTypeXidCriticalError:
                gpu = "?" if device is None else device.gpu
                xid = int(event.eventData)
                self._xids[gpu, xid] = self._xids.get((gpu, xid), 0) + 1
                place = "?" if device is None else device.bus
                self._note("critical", device, f"NVRM: Xid (PCI:{place}): {xid}, reported by NVML")
            else:
                self._note("critical", device, "NVML: double-bit memory error")

    def _note(self, severity: Any, device: _Watched | None, message: str) -> None:
        labels = () if device is None else (("gpu", device.gpu), ("pci", device.bus), ("uuid", device.uuid))
        self._records.append(
            LogRecord(
                at_seconds=self._clock.now_seconds(),
                origin="nvml",
                severity=severity,
                message=message,
                labels=labels,
            )
        )


class _Watched:
    """One device: what it supports, what it said last, and whether it is lost."""

    def __init__(self, nvml: Any, index: int, table: SeriesTable) -> None:
        self.gpu = str(index)
        self.uuid = self.bus = self.lost_reason = ""
        self.handle: Any = None
        self.is_lost = False
        self._nvml = nvml
        self._table = table
        self._index = index
        self._unsupported: set[str] = set()
        self._slow: list[Reading] = []
        self._next_slow_seconds = self._retry_seconds = float("-inf")
        self._keys: dict[tuple[str, tuple[tuple[str, str], ...]], int] = {}
        self._lost_key = table.key("lepton_gpu_lost", gpu=self.gpu)
        self._info_key = -1
        self._guarded(self._open, 0.0)

    def read(self, out: list[Reading], now: float) -> None:
        if self.is_lost and now >= self._retry_seconds:
            self.is_lost = False
            self._guarded(self._open, now)
        if not self.is_lost:
            fresh: list[Reading] = []
            if self._guarded(lambda: self._read_fields(fresh, now), now):
                out.extend(fresh)
                out.append((self._info_key, 1.0))
        out.append((self._lost_key, float(self.is_lost)))

    def _open(self) -> None:
        nvml = self._nvml
        self.handle = nvml.nvmlDeviceGetHandleByIndex(self._index)
        self.uuid = _text(nvml.nvmlDeviceGetUUID(self.handle))
        self.bus = short_bus(_text(nvml.nvmlDeviceGetPciInfo(self.handle).busId))
        labels = {"gpu": self.gpu, "uuid": self.uuid, "pci": self.bus}
        labels["name"] = _text(nvml.nvmlDeviceGetName(self.handle))
        labels["driver"] = _text(nvml.nvmlSystemGetDriverVersion())
        self._info_key = self._table.key("lepton_gpu_info", **labels)

    def _read_fields(self, out: list[Reading], now: float) -> None:
        self._ask(FAST, out)
        if now >= self._next_slow_seconds:
            self._next_slow_seconds = now + SLOW_SECONDS
            slow: list[Reading] = []
            self._ask(SLOW, slow)
            self._slow = slow
        out.extend(self._slow)

    def _ask(self, fields: Mapping[str, Field], out: list[Reading]) -> None:
        nvml = self._nvml
        device = Device(nvml, self.handle)
        for title, field in fields.items():
            if title in self._unsupported:
                continue
            try:
                values = field(device)
            except (
                nvml.NVMLError_NotSupported,
                nvml.NVMLError_FunctionNotFound,
                nvml.NVMLError_NoPermission,
                nvml.NVMLLibraryMismatchError,  # no NVMLError: bindings newer than the driver
            ):
                self._unsupported.add(title)
                continue
            except (nvml.NVMLError_GpuIsLost, nvml.NVMLError_ResetRequired):
                raise
            except nvml.NVMLError:
                continue  # a hiccup of one field, such as a timeout: asked again next time
            for name, labels, value in values:
                out.append((self._key(name, labels), value))

    def _key(self, name: str, labels: tuple[tuple[str, str], ...]) -> int:
        key = self._keys.get((name, labels))
        if key is None:
            key = self._keys[name, labels] = self._table.key(name, gpu=self.gpu, **dict(labels))
        return key

    def _guarded(self, act: Callable[[], None], now: float) -> bool:
        try:
            act()
        except self._nvml.NVMLError as error:
            self.is_lost = True
            self.lost_reason = str(error)
            self._retry_seconds = now + RETRY_LOST_SECONDS
            self._next_slow_seconds = float("-inf")
            self._slow = []
            return False
        return True


def short_bus(bus: str) -> str:
    """A bus address as the kernel writes it in Xid lines: four digits of domain, without the function.

    >>> short_bus("00000000:3B:00.0")
    '0000:3b:00'
    """
    domain, _, rest = bus.lower().partition(":")
    return f"{domain[-4:]}:{rest.rpartition('.')[0]}"


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _quietly(nvml: Any, act: Callable[[], Any]) -> Any:
    try:
        return act()
    except nvml.NVMLError:
        return None


def open_nvidia(place: Place, *, nvml: Any = None, clock: Clock | None = None) -> NvidiaSource | Absent:
    """The devices, where there is a driver and nvidia-ml-py is installed."""
    if nvml is None:
        if not (place.proc / "driver/nvidia").exists():  # before the import, which costs 4 MB
            return Absent("nvidia", "no driver is loaded (/proc/driver/nvidia)")
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return Absent("nvidia", "install nvidia-ml-py: pip install 'openlepton[operations]'")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return Absent("nvidia", f"NVML: {error}")
    try:
        source = NvidiaSource(place, nvml, clock=clock)
    except nvml.NVMLError as error:
        _quietly(nvml, nvml.nvmlShutdown)
        return Absent("nvidia", f"NVML: {error}")
    if not source._devices:
        source.close()
        return Absent("nvidia", "the driver knows no device")
    return source
