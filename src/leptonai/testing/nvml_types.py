"""What NVML's answers are made of: return codes, constants, error classes and structures, as in nvidia-ml-py 13."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from string import capwords
from types import MappingProxyType
from typing import Any, ClassVar

ERRORS: Mapping[str, int] = MappingProxyType(
    {
        "UNINITIALIZED": 1, "INVALID_ARGUMENT": 2, "NOT_SUPPORTED": 3, "NO_PERMISSION": 4, "ALREADY_INITIALIZED": 5,
        "NOT_FOUND": 6, "INSUFFICIENT_SIZE": 7, "INSUFFICIENT_POWER": 8, "DRIVER_NOT_LOADED": 9, "TIMEOUT": 10,
        "IRQ_ISSUE": 11, "LIBRARY_NOT_FOUND": 12, "FUNCTION_NOT_FOUND": 13, "CORRUPTED_INFOROM": 14,
        "GPU_IS_LOST": 15, "RESET_REQUIRED": 16, "OPERATING_SYSTEM": 17, "LIB_RM_VERSION_MISMATCH": 18,
        "IN_USE": 19, "MEMORY": 20, "NO_DATA": 21, "UNKNOWN": 999,
    }
)  # fmt: skip
"""Return codes of NVML (nvml.h, nvmlReturn_t) without ``NVML_ERROR_``."""
CONSTANTS: Mapping[str, int] = MappingProxyType(
    {
        "NVML_SUCCESS": 0, "NVML_FEATURE_DISABLED": 0, "NVML_FEATURE_ENABLED": 1, "NVML_TEMPERATURE_GPU": 0,
        "NVML_CLOCK_GRAPHICS": 0, "NVML_CLOCK_SM": 1, "NVML_CLOCK_MEM": 2, "NVML_CLOCK_VIDEO": 3,
        "NVML_VOLATILE_ECC": 0, "NVML_AGGREGATE_ECC": 1, "NVML_MEMORY_ERROR_TYPE_CORRECTED": 0,
        "NVML_MEMORY_ERROR_TYPE_UNCORRECTED": 1, "NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS": 0,
        "NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR": 1, "NVML_NVLINK_ERROR_DL_REPLAY": 0,
        "NVML_NVLINK_ERROR_DL_RECOVERY": 1, "NVML_NVLINK_ERROR_DL_CRC_FLIT": 2, "NVML_NVLINK_ERROR_DL_CRC_DATA": 3,
        "NVML_FI_DEV_MEMORY_TEMP": 82, "NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX": 138,
        "NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX": 139, "NVML_VALUE_TYPE_UNSIGNED_INT": 1,
        "NVML_VALUE_TYPE_UNSIGNED_LONG_LONG": 3, "nvmlEventTypeSingleBitEccError": 1,
        "nvmlEventTypeDoubleBitEccError": 2, "nvmlEventTypeXidCriticalError": 8,
        **{f"NVML_ERROR_{name}": value for name, value in ERRORS.items()},
    }
)  # fmt: skip
"""What of ``pynvml`` is a number here as there."""
_TEXTS = {
    1: "Uninitialized", 2: "Invalid Argument", 3: "Not Supported", 4: "Insufficient Permissions",
    5: "Already Initialized", 6: "Not Found", 7: "Insufficient Size", 8: "Insufficient External Power",
    9: "Driver Not Loaded", 10: "Timeout", 11: "Interrupt Request Issue", 12: "NVML Shared Library Not Found",
    13: "Function Not Found", 14: "Corrupted infoROM", 15: "GPU is lost", 16: "GPU requires restart",
    17: "The operating system has blocked the request.", 18: "RM has detected an NVML/RM version mismatch.",
    20: "Insufficient Memory", 999: "Unknown Error",
}  # fmt: skip


class NVMLError(Exception):
    """An NVML call failed with ``value``; made with a known code it is of that code's class.

    >>> type(NVMLError(3)).__name__
    'NVMLError_NotSupported'
    """

    value: int
    by_value: ClassVar[dict[int, type[NVMLError]]] = {}

    def __new__(cls, value: int) -> NVMLError:
        kind = cls.by_value.get(value, cls) if cls is NVMLError else cls
        made = Exception.__new__(kind)
        made.value = value
        return made

    def __str__(self) -> str:
        return _TEXTS.get(self.value, f"NVML Error with code {self.value}")

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self.value == getattr(other, "value", None)


class NVMLLibraryMismatchError(Exception):
    """A function without a version was called and the library is older than the module; no :class:`NVMLError`."""


def _error_class(name: str, value: int) -> type[NVMLError]:
    title = "NVMLError_" + capwords(name, "_").replace("_", "")
    return type(
        title,
        (NVMLError,),
        {"__new__": lambda cls, *_: NVMLError.__new__(cls, value), "__module__": __name__},
    )


ERROR_CLASSES: Mapping[str, type[NVMLError]] = MappingProxyType(
    {made.__name__: made for name, value in ERRORS.items() if (made := _error_class(name, value))}
)
NVMLError.by_value.update(
    {ERRORS[name]: made for name, made in zip(ERRORS, ERROR_CLASSES.values(), strict=True)}
)


class struct_c_nvmlDevice_t(ctypes.Structure):
    """Opaque: what a device's handle points to."""

    _fields_ = ()


class struct_c_nvmlEventSet_t(ctypes.Structure):
    """Opaque: what an event set's handle points to."""

    _fields_ = ()


class Body(ctypes.Structure):
    """What handles of the scripted library really point to."""

    _fields_ = (("unused", ctypes.c_uint),)  # so that no two share an address


c_nvmlDevice_t = ctypes.POINTER(struct_c_nvmlDevice_t)
c_nvmlEventSet_t = ctypes.POINTER(struct_c_nvmlEventSet_t)


class c_nvmlUtilization_t(ctypes.Structure):
    """Percent."""

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class c_nvmlMemory_t(ctypes.Structure):
    """Bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class nvmlPciInfo_t(ctypes.Structure):
    """Where a device is on the bus."""

    _fields_ = (
        ("busIdLegacy", ctypes.c_char * 16), ("domain", ctypes.c_uint), ("bus", ctypes.c_uint),
        ("device", ctypes.c_uint), ("pciDeviceId", ctypes.c_uint), ("pciSubSystemId", ctypes.c_uint),
        ("busId", ctypes.c_char * 32),
    )  # fmt: skip


class c_nvmlEventData_t(ctypes.Structure):
    """One event."""

    _fields_ = (
        ("device", c_nvmlDevice_t), ("eventType", ctypes.c_ulonglong), ("eventData", ctypes.c_ulonglong),
        ("gpuInstanceId", ctypes.c_uint), ("computeInstanceId", ctypes.c_uint),
    )  # fmt: skip


class c_nvmlValue_t(ctypes.Union):
    """A value of one of several types."""

    _fields_ = (
        ("dVal", ctypes.c_double), ("uiVal", ctypes.c_uint), ("ulVal", ctypes.c_ulong),
        ("ullVal", ctypes.c_ulonglong), ("sllVal", ctypes.c_longlong), ("siVal", ctypes.c_int),
        ("usVal", ctypes.c_ushort),
    )  # fmt: skip


class c_nvmlFieldValue_t(ctypes.Structure):
    """The answer for one field; ``nvmlReturn`` is its own return code."""

    _fields_ = (
        ("fieldId", ctypes.c_uint32), ("scopeId", ctypes.c_uint32), ("timestamp", ctypes.c_int64),
        ("latencyUsec", ctypes.c_int64), ("valueType", ctypes.c_uint), ("nvmlReturn", ctypes.c_uint),
        ("value", c_nvmlValue_t),
    )  # fmt: skip


STRUCTURES = (
    c_nvmlUtilization_t, c_nvmlMemory_t, nvmlPciInfo_t, c_nvmlEventData_t, c_nvmlValue_t, c_nvmlFieldValue_t,
)  # fmt: skip
"""What answers are made of, under the names they have in ``pynvml``."""


class nvmlFriendlyObject:
    """What ``pynvml`` makes of structures that hold processes: an object with their fields."""

    def __init__(self, dictionary: Mapping[str, Any]) -> None:
        self.__dict__.update(dictionary)
