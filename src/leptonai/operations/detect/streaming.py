"""A streaming anomaly detector for any one metric: no setting, no training, 84 KB, a few microseconds a point.

How. Seven channels each ask how far a point is from what was usual: the nearest remembered *shape* and longer
*context* (rare combinations of values that alone are ordinary), the level at this time of the day and of the week,
the level of late, and the size of moves. A channel's distance is ranked among its own latest 5,000, beyond the top
2 % along an exponential tail, so units, scale and noise of the series do not matter. The channels' evidence is joined
and turned into a p-value (:mod:`leptonai.operations.detect.calibration`).

The score is evidence, not an alarm: when to call a person is the next layer's business.

What it takes. *Gauges*: as they come. *Counters* (values that only grow): give the rate, as
:mod:`leptonai.operations.detect.counters` makes it; a growing total is new at every point. *Gaps*: leave the points
out, or give NaN; after a hole of 16 usual intervals windows begin anew. *Flat series*: equal values are no evidence,
up to rounding; a first change after a long constant stretch is, and what recurs is learnt. *Restarts*: keep
:meth:`StreamingDetector.to_bytes`; scores go on as if nothing had happened. *A clock that goes back*: the point is
scored in its order of arrival; only the season looks at the time. *Time zones*: days and weeks are those of UTC, so a
switch to summer time looks like an hour's shift for about a week.
"""

from __future__ import annotations

import ctypes
import math
import struct
import zlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leptonai.core.errors import InputError
from leptonai.operations.detect import streaming_reference
from leptonai.operations.detect.calibration import joint_evidence, p_value
from leptonai.operations.detect.score import Score
from leptonai.operations.detect.streaming_kernel import Take, compiled_take, library
from leptonai.operations.detect.streaming_state import (
    KEPT,
    NUM_PROTOTYPES,
    REASONS,
    STATE,
)

MIN_HISTORY_POINTS = 64
"""As long as the longest context: before, hardly a channel has ranks to speak of."""
GAP_REASON = "gap"

_HEADER = struct.Struct("<8sI")
_MAGIC = b"lepdet\x00\x01"
"""The last byte is the version: a change of the record or of what a channel measures raises it."""


class StreamingDetector:
    """Evidence that the latest point of a series is strange; see the module. Not safe to share between threads.

    Args:
        compiled: use the C kernel where there is a compiler; without it scores are the same, and slower.

    >>> detector = StreamingDetector()
    >>> scores = [detector.update(math.sin(i / 7.0), at_seconds=60.0 * i) for i in range(500)]
    >>> scores[10].p_value is None, scores[400].p_value > 0.01
    (True, True)
    >>> detector.update(3.0, at_seconds=30_000.0).p_value < 0.001
    True
    """

    def __init__(self, *, compiled: bool = True) -> None:
        self._state = np.zeros(1, STATE)
        self._address = self._state.ctypes.data
        self._num_points = 0
        self._library = library() if compiled else None
        self._reason = ctypes.c_int32()
        self._reason_address = ctypes.addressof(self._reason)

    @property
    def memory_bytes(self) -> int:
        """What it remembers, in bytes: the same for every series and age."""
        return int(self._state.nbytes)

    @property
    def is_compiled(self) -> bool:
        """Whether the C kernel does the work."""
        return self._library is not None

    def update(self, value: float, *, at_seconds: float) -> Score:
        """Take in one point and say how strange it is, given those before it.

        Args:
            value: finite, or else a gap, which has no p-value and leaves no trace. Beyond 1e37: cut.
            at_seconds: seconds since 1970.

        Raises:
            InputError: ``at_seconds`` is not finite.
        """
        if not math.isfinite(at_seconds):
            raise InputError(f"expected a finite at_seconds, found {at_seconds}")
        if not math.isfinite(value):
            return Score(None, GAP_REASON)
        if self._library is not None:
            joint = self._library.lepton_detector_take_one(
                self._address, value, at_seconds, self._reason_address
            )
            reason = self._reason.value
        else:
            evidence = streaming_reference.take(self._state, np.array([value]), np.array([at_seconds]))
            joint, reason = float(joint_evidence(evidence)[0]), int(evidence[0].argmax())
        self._num_points += 1
        if self._num_points <= MIN_HISTORY_POINTS:
            return Score(None)
        return Score(p_value(joint), REASONS[reason])

    def update_many(self, values: ArrayLike, *, at_seconds: ArrayLike) -> NDArray[np.float64]:
        """Take in points at once: the p-values that :meth:`update` would give, NaN where it gives None.

        Raises:
            InputError: not two lists of equal length, or a time that is not finite.

        >>> StreamingDetector().update_many([1.0] * 66, at_seconds=range(66))[-3:]
        array([nan,  1.,  1.])
        """
        values_P, seconds_P = np.asarray(values, np.float64), np.asarray(at_seconds, np.float64)
        if values_P.ndim != 1 or values_P.shape != seconds_P.shape or not np.isfinite(seconds_P).all():
            raise InputError("expected as many finite times as values")
        joint_P = joint_evidence(self._take()(self._state, values_P, seconds_P))
        finite_P = np.isfinite(values_P)
        order_P = self._num_points + np.cumsum(finite_P)
        self._num_points += int(finite_P.sum())
        known_P = finite_P & (order_P > MIN_HISTORY_POINTS)
        found = [p_value(joint) if known else math.nan for joint, known in zip(joint_P, known_P, strict=True)]
        return np.array(found, np.float64)

    def _take(self) -> Take:
        return streaming_reference.take if self._library is None else compiled_take(self._library)

    def to_bytes(self) -> bytes:
        """All it remembers, for a restart."""
        body = self._state.tobytes()
        return _HEADER.pack(_MAGIC, zlib.crc32(body)) + body

    @classmethod
    def from_bytes(cls, kept: bytes, *, compiled: bool = True) -> StreamingDetector:
        """The detector that :meth:`to_bytes` was called on, with or without the kernel.

        Raises:
            InputError: the bytes are damaged, or another version's.
        """
        hint = "start a new detector: it needs a few thousand points to be at its best"
        if len(kept) != _HEADER.size + STATE.itemsize or kept[: len(_MAGIC)] != _MAGIC:
            raise InputError("this is not a detector of this version", hint=hint)
        _, checksum = _HEADER.unpack_from(kept)
        body = kept[_HEADER.size :]
        detector = cls(compiled=compiled)
        detector._state[:] = np.frombuffer(body, STATE)
        if zlib.crc32(body) != checksum or not _is_sound(detector._state[0]):
            raise InputError("the detector's bytes are damaged", hint=hint)
        detector._num_points = int(detector._state["num_points"][0])
        return detector


def _is_sound(state: np.void) -> bool:
    """Whether counts lie where the kernel may trust them, and numbers are numbers."""
    assert STATE.names is not None
    if not all(np.isfinite(state[name]).all() for name in STATE.names):
        return False
    limits = {"num_prototypes": NUM_PROTOTYPES, "tail_kept": KEPT}
    counts = [name for name in STATE.names if np.issubdtype(STATE[name].base, np.signedinteger)]
    largest = np.iinfo(np.int64).max // 2
    return all(
        bool((state[name] >= 0).all() and (state[name] <= limits.get(name, largest)).all()) for name in counts
    )
