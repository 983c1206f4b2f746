"""The clock: how far it is from its reference, whether it follows one, and jumps against the monotonic clock."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

from leptonai.core.clock import Clock, SystemClock
from leptonai.operations.agent.source import Absent, Place, Reading, Source

JUMP_SECONDS = 0.05
"""A wall clock that moves this much beyond the monotonic one between two samples has been set, not slewed: slewing
is at most 500 parts in a million (adjtimex(2))."""
_STA_UNSYNC = 0x40
_STA_NANO = 0x2000
_TIME_ERROR = 5
_MICRO = 1e-6
_NANO = 1e-9
_FREQUENCY_SCALE = 65536.0 * 1e6  # freq is in parts per million with 16 bits of fraction
_ADJUST_SECONDS = 5.0  # time daemons adjust every 16 s or more


class Timex(ctypes.Structure):
    """``struct timex`` of adjtimex(2) on 64-bit Linux."""

    _fields_ = (
        ("modes", ctypes.c_uint), ("offset", ctypes.c_long), ("freq", ctypes.c_long), ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long), ("status", ctypes.c_int), ("constant", ctypes.c_long),
        ("precision", ctypes.c_long), ("tolerance", ctypes.c_long), ("time_sec", ctypes.c_long),
        ("time_usec", ctypes.c_long), ("tick", ctypes.c_long), ("ppsfreq", ctypes.c_long),
        ("jitter", ctypes.c_long), ("shift", ctypes.c_int), ("stabil", ctypes.c_long), ("jitcnt", ctypes.c_long),
        ("calcnt", ctypes.c_long), ("errcnt", ctypes.c_long), ("stbcnt", ctypes.c_long), ("tai", ctypes.c_int),
        ("padding", ctypes.c_int * 11),
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockState:
    """What the kernel says of its clock, in seconds."""

    offset_seconds: float
    maxerror_seconds: float
    estimated_error_seconds: float
    frequency_ratio: float
    is_synchronised: bool


def clock_state(timex: Timex, returned: int) -> ClockState:
    """Read what adjtimex filled in.

    >>> clock_state(Timex(offset=1500, status=0x2000, maxerror=20), 0).offset_seconds
    1.5e-06
    """
    unit = _NANO if timex.status & _STA_NANO else _MICRO
    return ClockState(
        offset_seconds=timex.offset * unit,
        maxerror_seconds=timex.maxerror * _MICRO,
        estimated_error_seconds=timex.esterror * _MICRO,
        frequency_ratio=1.0 + timex.freq / _FREQUENCY_SCALE,
        is_synchronised=returned != _TIME_ERROR and not timex.status & _STA_UNSYNC,
    )


def read_clock_state() -> ClockState:
    """Ask the kernel; changes nothing.

    Raises:
        OSError: the system call is refused.
    """
    timex = Timex()
    libc = ctypes.CDLL(None, use_errno=True)
    returned = libc.adjtimex(ctypes.byref(timex))
    if returned < 0:
        raise OSError(ctypes.get_errno(), "adjtimex is refused")
    return clock_state(timex, returned)


class JumpWatch:
    """Compares how far the wall clock and the monotonic clock moved between two samples.

    >>> watch = JumpWatch()
    >>> [watch.step(*pair) for pair in ((100.0, 5.0), (101.0, 6.0), (162.0, 7.0))], watch.num_jumps
    ([0.0, 0.0, 60.0], 1)
    """

    def __init__(self) -> None:
        self.num_jumps = 0
        self._offset_seconds: float | None = None

    def step(self, wall_seconds: float, monotonic_seconds: float) -> float:
        """Seconds by which the wall clock moved too far, less than 0: back; 0 where it was only slewed."""
        offset = wall_seconds - monotonic_seconds
        moved = 0.0 if self._offset_seconds is None else offset - self._offset_seconds
        self._offset_seconds = offset
        if abs(moved) < JUMP_SECONDS:
            return 0.0
        self.num_jumps += 1
        return moved


class ClockSource:
    """Reads the kernel's state every few seconds, and looks for jumps each time."""

    name = "clock"
    interval_seconds = 0.0

    def __init__(
        self,
        place: Place,
        *,
        clock: Clock | None = None,
        read_state: Callable[[], ClockState] = read_clock_state,
    ) -> None:
        self._clock = clock or SystemClock()
        self._read_state = read_state
        self._watch = JumpWatch()
        self._next_seconds = float("-inf")
        self._state: list[Reading] = []
        names = [
            "offset_seconds", "maxerror_seconds", "estimated_error_seconds",
            "frequency_adjustment_ratio", "sync_status",
        ]  # fmt: skip
        self._timex = [place.table.key(f"node_timex_{name}") for name in names]
        self._step = place.table.key("lepton_clock_step_seconds")
        self._jumps = place.table.key("lepton_clock_steps_total")

    def read(self, out: list[Reading]) -> None:
        now = self._clock.monotonic_seconds()
        out.append((self._step, self._watch.step(self._clock.now_seconds(), now)))
        out.append((self._jumps, float(self._watch.num_jumps)))
        if now >= self._next_seconds:
            self._next_seconds = now + _ADJUST_SECONDS
            state = self._read_state()
            values = [
                state.offset_seconds, state.maxerror_seconds, state.estimated_error_seconds, state.frequency_ratio,
                float(state.is_synchronised),
            ]  # fmt: skip
            self._state = list(zip(self._timex, values, strict=True))
        out.extend(self._state)

    def close(self) -> None:
        """Nothing stays open."""


def open_clock(place: Place) -> Source | Absent:
    """The clock."""
    source = ClockSource(place)
    try:
        source.read([])
    except (OSError, AttributeError) as error:
        return Absent("clock", f"adjtimex: {error}")
    return source
