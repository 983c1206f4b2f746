"""The streaming detector: causal, invariant, bounded, restartable, the same with and without the kernel."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.operations.detect.streaming import GAP_REASON, MIN_HISTORY_POINTS, StreamingDetector
from leptonai.operations.detect.streaming_kernel import library
from leptonai.operations.detect.streaming_state import STATE

Floats = NDArray[np.floating[Any]]

START_SECONDS = 1.6e9
needs_kernel = pytest.mark.skipif(
    library() is None, reason="no C compiler here: the reference is all there is"
)


def hard_series(num: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Noise on a season, with a flat stretch, ties, spikes, a level shift, gaps, and a clock that jumps."""
    rng = np.random.default_rng(seed)
    seconds = START_SECONDS + 300.0 * np.arange(num)
    values = np.sin(seconds / 86400.0 * 2.0 * math.pi) + rng.normal(size=num).round(2)
    values[num // 10 : num // 8] = 0.5
    values[num // 2] = 40.0
    values[num // 3 : num // 3 + 4] = [math.nan, math.inf, -math.inf, 1e300]
    values[3 * num // 4 :] += 3.0
    seconds[num // 4 :] += 7e5
    seconds[num // 2 :] -= 9e5
    return values, seconds


def p_values(values: Floats, seconds: Floats, *, compiled: bool = True) -> Floats:
    return StreamingDetector(compiled=compiled).update_many(values, at_seconds=seconds)


@needs_kernel
def test_kernel_and_reference_give_the_same_scores_and_remember_the_same() -> None:
    values, seconds = hard_series(1600)
    ours, reference = StreamingDetector(), StreamingDetector(compiled=False)
    assert ours.is_compiled
    assert not reference.is_compiled
    np.testing.assert_allclose(
        ours.update_many(values, at_seconds=seconds),
        reference.update_many(values, at_seconds=seconds),
        rtol=1e-12,
    )
    theirs = np.frombuffer(reference.to_bytes()[12:], STATE)[0]
    mine = np.frombuffer(ours.to_bytes()[12:], STATE)[0]
    for name in STATE.names or ():
        np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-12, err_msg=name)


@needs_kernel
def test_kernel_and_reference_agree_once_old_distances_are_forgotten() -> None:
    values, seconds = hard_series(6000, seed=1)
    quiet = values.copy()
    quiet[2000:] = 0.02 * values[2000:]
    aged = StreamingDetector()
    aged.update_many(quiet[:5300], at_seconds=seconds[:5300])
    reference = StreamingDetector.from_bytes(aged.to_bytes(), compiled=False)
    rest, times = quiet[5300:], seconds[5300:]
    np.testing.assert_allclose(
        aged.update_many(rest, at_seconds=times), reference.update_many(rest, at_seconds=times), rtol=1e-12
    )


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_kernel), False])
def test_points_one_by_one_score_as_points_at_once(compiled: bool) -> None:
    values, seconds = hard_series(400)
    detector = StreamingDetector(compiled=compiled)
    scores = [
        detector.update(v, at_seconds=t) for v, t in zip(values.tolist(), seconds.tolist(), strict=True)
    ]
    one_by_one = [math.nan if score.p_value is None else score.p_value for score in scores]
    np.testing.assert_array_equal(one_by_one, p_values(values, seconds, compiled=compiled))
    assert {score.reason for score in scores if score.p_value is not None} <= {
        "shape", "context", "seasonal", "level", "spread",
    }  # fmt: skip


@given(
    values=st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=70, max_size=150),
    cut=st.integers(1, 69),
    seed=st.integers(0, 9),
)
@settings(max_examples=25, deadline=None)
def test_no_value_breaks_it_and_no_score_looks_ahead(values: list[float], cut: int, seed: int) -> None:
    seconds = START_SECONDS + np.random.default_rng(seed).normal(size=len(values)).cumsum() * 1000.0
    whole = p_values(np.array(values), seconds)
    known = whole[np.isfinite(whole)]
    assert ((known > 0.0) & (known <= 1.0)).all()
    np.testing.assert_array_equal(p_values(np.array(values[:cut]), seconds[:cut]), whole[:cut])
    np.testing.assert_array_equal(p_values(np.array(values[:cut] + [7.0] * 9), np.r_[seconds[:cut], seconds[:9]])[:cut],
                                  whole[:cut])  # fmt: skip


def test_a_later_point_never_changes_an_earlier_score() -> None:
    values, seconds = hard_series(3000)
    found = p_values(values, seconds)
    for cut in (65, 500, 1501, 2999):
        other = values.copy()
        other[cut:] = 1e6
        np.testing.assert_array_equal(p_values(other, seconds)[:cut], found[:cut])


@pytest.mark.parametrize(
    ("scale", "shift"), [(8.0, 0.0), (1e-6, 0.0), (1e9, 0.0), (1.0, 1000.0), (-3.0, 70.0)]
)
def test_unit_and_zero_of_a_series_do_not_matter(scale: float, shift: float) -> None:
    values, seconds = hard_series(3000)
    values[np.abs(values) > 1e30] = math.nan
    found, other = p_values(values, seconds), p_values(values * scale + shift, seconds)
    known = np.isfinite(found)
    apart = np.abs(np.log10(other[known] / found[known]))
    assert np.quantile(apart, 0.98) < 0.01
    assert apart.max() < 1.0


@pytest.mark.parametrize("value", [0.1, 1e-300, -1234567.891])
def test_a_flat_series_is_never_strange_and_noise_of_rounding_neither(value: float) -> None:
    seconds = START_SECONDS + 60.0 * np.arange(2000)
    found = p_values(np.full(2000, value), seconds)
    assert (found[MIN_HISTORY_POINTS:] == 1.0).all()
    rounded = value + value * 2.2e-16 * np.random.default_rng(0).integers(-2, 3, 2000)
    assert (p_values(rounded, seconds)[MIN_HISTORY_POINTS:] == 1.0).all()


def test_the_first_change_of_a_flat_series_is_strange_and_a_new_level_is_learnt() -> None:
    values = np.r_[np.zeros(3000), np.ones(7000)]
    found = p_values(values, START_SECONDS + 60.0 * np.arange(10_000))
    assert found[3000] < 1e-3
    assert found[9000:].min() > 0.01


def test_what_is_strange_is_found_and_named() -> None:
    rng = np.random.default_rng(3)
    seconds = START_SECONDS + 300.0 * np.arange(8000)
    noise = 0.3 * rng.normal(size=8000)
    season = 5.0 * np.sin(seconds / 86400.0 * 2.0 * math.pi)
    spike, shift, spread, still = season + noise, season + noise, season + noise, season + noise
    spike[7000] += 8.0
    shift[7000:] += 3.0
    spread[7000:7040] += 2.0 * rng.normal(size=40)
    still[7000:7300] = still[7000]
    for changed, limit in ((spike, 1e-4), (shift, 1e-4), (spread, 1e-4), (still, 1e-3)):
        found = p_values(changed, seconds)
        assert found[7000:7100].min() < limit
    detector = StreamingDetector()
    scores = [detector.update(v, at_seconds=t) for v, t in zip(shift.tolist(), seconds.tolist(), strict=True)]
    strongest = max(scores[7000:7200], key=lambda score: score.strength)
    assert strongest.reason in {"seasonal", "level"}


def test_too_little_history_is_said() -> None:
    detector = StreamingDetector()
    scores = [detector.update(float(i % 7), at_seconds=60.0 * i) for i in range(MIN_HISTORY_POINTS + 1)]
    assert all(score.p_value is None and score.reason == "" for score in scores[:-1])
    assert scores[-1].p_value is not None


def test_a_gap_has_no_score_and_leaves_no_trace() -> None:
    values, seconds = hard_series(700)
    detector = StreamingDetector()
    detector.update_many(values, at_seconds=seconds)
    before = detector.to_bytes()
    for value in (math.nan, math.inf, -math.inf):
        score = detector.update(value, at_seconds=float(seconds[-1]) + 1.0)
        assert (score.p_value, score.reason) == (None, GAP_REASON)
    assert detector.to_bytes() == before


def test_a_long_hole_is_not_taken_for_a_move() -> None:
    rng = np.random.default_rng(5)
    seconds = START_SECONDS + 60.0 * np.arange(4000)
    values = rng.normal(size=4000).cumsum() * 0.01
    values += 10.0 * np.sin(seconds / 86400.0 * 2.0 * math.pi)
    kept = np.r_[0:3000, 3400:4000]
    detector = StreamingDetector()
    detector.update_many(values[kept][:3000], at_seconds=seconds[kept][:3000])
    after = detector.update(float(values[3400]), at_seconds=float(seconds[3400]))
    assert after.p_value is not None
    state = np.frombuffer(detector.to_bytes()[12:], STATE)[0]
    assert state["num_together"] == 1
    assert state["num_moves"] == 0


@pytest.mark.parametrize("cut", [0, 30, 900, 5500])
def test_a_restart_changes_no_score(cut: int) -> None:
    values, seconds = hard_series(6000)
    whole = p_values(values, seconds)
    detector = StreamingDetector()
    detector.update_many(values[:cut], at_seconds=seconds[:cut])
    again = StreamingDetector.from_bytes(detector.to_bytes())
    np.testing.assert_array_equal(again.update_many(values[cut:], at_seconds=seconds[cut:]), whole[cut:])


@given(place=st.integers(0, 12 + STATE.itemsize - 1), bit=st.integers(0, 7))
@settings(max_examples=40, deadline=None)
def test_any_flipped_bit_of_a_kept_detector_is_refused(place: int, bit: int) -> None:
    kept = bytearray(StreamingDetector().to_bytes())
    kept[place] ^= 1 << bit
    with pytest.raises(InputError):
        StreamingDetector.from_bytes(bytes(kept))


@pytest.mark.parametrize(
    ("name", "bad"), [("tail_kept", 2000), ("num_prototypes", -1), ("num_moves", -5), ("anchor", math.nan)]
)
def test_a_record_that_would_lead_the_kernel_astray_is_refused(name: str, bad: float) -> None:
    state = np.zeros(1, STATE)
    state[name] = bad
    body = state.tobytes()
    kept = StreamingDetector().to_bytes()[:8] + zlib.crc32(body).to_bytes(4, "little") + body
    with pytest.raises(InputError, match="damaged"):
        StreamingDetector.from_bytes(kept)


def test_memory_is_bounded_and_small() -> None:
    detector = StreamingDetector()
    values, seconds = hard_series(12_000)
    before = len(detector.to_bytes())
    detector.update_many(values, at_seconds=seconds)
    assert len(detector.to_bytes()) == before
    assert detector.memory_bytes <= 128_000


def test_bad_calls_are_refused() -> None:
    detector = StreamingDetector()
    with pytest.raises(InputError):
        detector.update(1.0, at_seconds=math.nan)
    with pytest.raises(InputError):
        detector.update_many([1.0, 2.0], at_seconds=[0.0])
    with pytest.raises(InputError):
        detector.update_many([1.0], at_seconds=[math.inf])
    with pytest.raises(InputError):
        StreamingDetector.from_bytes(b"")
