"""What a streaming detector of one's own must keep, as one call that runs named checks.

``check_detector(make)`` feeds fresh detectors with generated series and says, check by check, what held and what
did not; ``check_detector(make).require()`` raises AssertionError in words for use in a test.
"""

from __future__ import annotations

import math
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.operations.detect.score import Detector, Score

Floats = NDArray[np.float64]
Make = Callable[[], Detector]

PERIOD_SECONDS = 300.0
SAMPLES_A_DAY = 288
START_SECONDS = 1_700_000_000.0
NUM_SAMPLES = 2_400
"""Of a check's series: eight days at one sample in five minutes."""
NUM_CALIBRATION_SAMPLES = 4_032
"""Two weeks; the second half is counted, so that a day's shape can have been learnt."""
MAX_WARM_UP_SAMPLES = 1_000
"""By then a detector must say something of steady noise."""
LEVELS = (0.01, 0.001)
"""P-values whose frequency is checked."""
CALIBRATION_SLACK = 3.0
"""A p-value of one in a hundred may come up to three times as often: one length of series cannot tell less."""
MAX_BYTES = 640 * 1024
"""What a detector may hold at most, where the caller says nothing else."""
FILL_SAMPLES = 12_000
"""After which a bounded memory must be full."""
MAX_GROWTH_BYTES = 48 * 1024
"""Over as many samples as half of those that filled it: a list of bare floats would take twice this."""
AFFINE = ((1e-6, 0.0), (3.7, 1e4), (1e9, -5e9))
"""Units and offsets under which scores must not change."""
AFFINE_TOLERANCE = 0.05
"""In ``-log10`` p: rounding alone makes smaller differences."""
AFFINE_SHARE = 0.95
"""Of points within the tolerance: equal values that rounding tears apart may change ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One named check: whether it held, and what was seen, in a sentence."""

    name: str
    passed: bool
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All checks of one detector."""

    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of those that did not hold."""
        return tuple(check.name for check in self.checks if not check.passed)

    def require(self) -> None:
        """Nothing, or an AssertionError that names every check that did not hold."""
        wrong = [f"{check.name}: {check.message}" for check in self.checks if not check.passed]
        assert not wrong, "\n".join(wrong)

    def __str__(self) -> str:
        return "\n".join(
            f"{'ok  ' if check.passed else 'FAIL'} {check.name}: {check.message}" for check in self.checks
        )


def check_detector(
    make: Make,
    *,
    max_bytes: int = MAX_BYTES,
    max_microseconds: float = math.inf,
    calibration_slack: float = CALIBRATION_SLACK,
    only: Sequence[str] = (),
    seed: int = 0,
) -> Report:
    """Run every check, or those named in ``only``, on detectors made fresh for each.

    Args:
        make: builds a new detector with nothing learnt.
        max_bytes: of Python and NumPy memory that one detector may hold.
        max_microseconds: that the median update may take on this machine.
        calibration_slack: how many times as often as it says a p-value may come up while nothing is wrong.
        only: names of checks; empty: all.
        seed: of the generated series.

    Raises:
        InputError: a name in ``only`` is none of a check's.
    """
    rng = np.random.default_rng(seed)
    checks: list[tuple[str, Callable[[], tuple[bool, str]]]] = [
        ("valid", lambda: _valid(make, rng)),
        ("warm_up", lambda: _warm_up(make, rng)),
        ("repeatable", lambda: _repeatable(make, rng)),
        ("causal", lambda: _causal(make, rng)),
        ("settled", lambda: _settled(make, rng)),
        ("gaps", lambda: _gaps(make, rng)),
        ("clock_back", lambda: _clock_back(make, rng)),
        ("flat_line", lambda: _flat_line(make)),
        ("affine", lambda: _affine(make, rng)),
        ("sees", lambda: _sees(make, rng)),
        *[
            (f"calibrated_{kind}", lambda series=series: _calibrated(make, series(rng), calibration_slack))
            for kind, series in HEALTHY.items()
        ],
        ("restart", lambda: _restart(make, rng)),
        ("memory", lambda: _memory(make, rng, max_bytes)),
        ("speed", lambda: _speed(make, rng, max_microseconds)),
    ]
    unknown = set(only) - {name for name, _ in checks}
    if unknown:
        raise InputError(f"no check named {', '.join(sorted(unknown))}", hint=", ".join(n for n, _ in checks))
    return Report(checks=tuple(_run(name, check) for name, check in checks if not only or name in only))


def _run(name: str, check: Callable[[], tuple[bool, str]]) -> Check:
    try:
        passed, message = check()
    except Exception as error:  # whatever a stranger's detector raises is a finding, not our end
        passed, message = False, f"raised {type(error).__name__}: {error}"
    return Check(name=name, passed=passed, message=message)


def _times(num_samples: int) -> Floats:
    return np.asarray(START_SECONDS + PERIOD_SECONDS * np.arange(num_samples))


def _feed(detector: Detector, values: Floats, times: Floats | None = None) -> list[Score]:
    at = _times(len(values)) if times is None else times
    return [
        detector.update(float(value), at_seconds=float(when)) for value, when in zip(values, at, strict=True)
    ]


def white(rng: np.random.Generator, num_samples: int = NUM_CALIBRATION_SAMPLES) -> Floats:
    """Normal noise about 10."""
    return 10.0 + rng.standard_normal(num_samples)


def autoregressive(rng: np.random.Generator, num_samples: int = NUM_CALIBRATION_SAMPLES) -> Floats:
    """Noise that remembers: correlation 0.8 from one sample to the next."""
    values = np.empty(num_samples)
    last = 0.0
    for place, kick in enumerate(rng.standard_normal(num_samples)):
        last = 0.8 * last + 0.6 * float(kick)
        values[place] = 10.0 + last
    return values


def seasonal(rng: np.random.Generator, num_samples: int = NUM_CALIBRATION_SAMPLES) -> Floats:
    """A daily wave of eight times the noise."""
    wave = np.sin(2 * np.pi * np.arange(num_samples) / SAMPLES_A_DAY)
    return np.asarray(20.0 + 8.0 * wave + rng.standard_normal(num_samples))


HEALTHY: dict[str, Callable[[np.random.Generator], Floats]] = {
    "white": white,
    "autoregressive": autoregressive,
    "seasonal": seasonal,
}
"""Series in which nothing is wrong, by name."""


def _is_valid(score: Score) -> bool:
    return score.p_value is None or 0.0 < score.p_value <= 1.0


def _bad(scores: Sequence[Score]) -> str:
    wrong = [place for place, score in enumerate(scores) if not _is_valid(score)]
    return f"point {wrong[0]} has p-value {scores[wrong[0]].p_value}, outside (0, 1]" if wrong else ""


def _valid(make: Make, rng: np.random.Generator) -> tuple[bool, str]:
    bad = _bad(_feed(make(), seasonal(rng, NUM_SAMPLES)))
    return not bad, bad or "every p-value is None or in (0, 1]"


def _warm_up(make: Make, rng: np.random.Generator) -> tuple[bool, str]:
    scores = _feed(make(), white(rng, MAX_WARM_UP_SAMPLES + 1))
    first = next((place for place, score in enumerate(scores) if score.p_value is not None), None)
    if first is None:
        return False, f"still says nothing after {MAX_WARM_UP_SAMPLES} points of steady noise"
    if first < 2:
        return False, f"judges point {first}, when there is not enough history to tell"
    return True, f"says that history is short for {first} points"


def _first_difference(first: Sequence[Score], second: Sequence[Score]) -> int | None:
    pairs = zip(first, second, strict=False)
    return next((place for place, (one, two) in enumerate(pairs) if one.p_value != two.p_value), None)


def _repeatable(make: Make, rng: np.random.Generator) -> tuple[bool, str]:
    values = seasonal(rng, NUM_SAMPLES)
    place = _first_difference(_feed(make(), values), _feed(make(), values))
    if place is None:
        return True, "two fresh detectors give bit-equal scores for equal series"
    return False, f"two fresh detectors differ at point {place}: they share something, or use unseeded chance"


def _causal(make: Make, rng: np.random.Generator) -> tuple[bool, str]:
    values = seasonal(rng, NUM_SAMPLES)
    whole = _feed(make(), values)
    for cut in (NUM_SAMPLES // 7, NUM_SAMPLES // 2, NUM_SAMPLES - 3):
        place = _first_difference(whole, _feed(make(), values[:cut]))
        if place is not None:
            return False, f"the score of point {place} changes when the series ends at point {cut}"
        altered = values.copy()
        altered[cut:] = 50.0 + 100.0 * rng.standard_normal(NUM_SAMPLES - cut)
        place = _first_difference(whole[:cut], _feed(make(), altered)[:cut])
        if place is not None:
            return False, f"the score of point {place} changes with the values from point {cut} on"
    return True, "cutting or altering the future changes no score before it"


def _settled(make: Make, rng: np.random.Generator) -> tuple[bool, str]:
    detector, values = make(), white(rng, NUM_SAMPLES)
    scores, said = [], []
    for value, when in zip(values, _times(NUM_SAMPLES), strict=True):
        score = detector.update(float(value), at_seconds=float(when))
        scores.append(score)
        said.append(score.p_value)
    changed = next(
        (k for k, (score, p) in enumerate(zip(scores, said, strict=True)) if score.p_value != p), None
    )
    if changed is None:
        return True, "a score once given stays as it was"
    return False, f"the score of point {changed} was changed after it had been given"


def _gaps(make: Make, rng: np.random.Generator) -> tuple[bool, str]:
    values, times = white(rng, NUM_SAMPLES), _times(NUM_SAMPLES)
    values[500:520], values[700], values[701], values[900] = math.nan, math.inf, -math.inf, 1e300
    times[1_200:] += 3 * 86_400.0
    scores = _feed(make(), values, times)
    bad = _bad(scores)
    if bad:
        return False, bad
    if all(score.p_value is None for score in scores[-200:]):
        return False, "says nothing any more after NaN, infinite and missing samples"
    if float(np.median([score.strength for score in scores[-200:]])) > 2.0:
        return False, "finds most points odd long after NaN, infinite and missing samples"
    return True, "NaN, infinite, huge and missing samples leave it working"


def _clock_back(make: Make, rng: np.random.Generator) -> tuple[bool, str]:
    values, times = white(rng, NUM_SAMPLES), _times(NUM_SAMPLES)
    times[800:] -= 7_200.0
    times[1_000:1_010] = times[1_000]
    scores = _feed(make(), values, times)
    bad = _bad(scores)
    if bad:
        return False, bad
    if all(score.p_value is None for score in scores[-200:]):
        return False, "says nothing any more after the clock went back two hours"
    return True, "a clock that goes back or stands still leaves it working"


def _flat_line(make: Make) -> tuple[bool, str]:
    values = np.full(NUM_SAMPLES, 0.1)
    values[-1] = 7.0
    scores = _feed(make(), values)
    bad = _bad(scores)
    if bad:
        return False, bad
    odd = [place for place, score in enumerate(scores[:-1]) if score.strength >= 2.0]
    if odd:
        return False, f"finds {len(odd)} points of a series odd that has one value only, first point {odd[0]}"
    if scores[-1].strength < 2.0:
        return False, f"gives p {scores[-1].p_value} to the first point that leaves a flat line"
    return True, "a flat line is not odd, and leaving it is"


def _affine(make: Make, rng: np.random.Generator) -> tuple[bool, str]:
    values = seasonal(rng, NUM_SAMPLES)
    values[-100] += 9.0
    base = np.array([score.strength for score in _feed(make(), values)])
    worst, at = 1.0, AFFINE[0]
    for factor, offset in AFFINE:
        scaled = np.array([score.strength for score in _feed(make(), factor * values + offset)])
        share = float((np.abs(scaled - base) <= AFFINE_TOLERANCE).mean())
        if share < worst:
            worst, at = share, (factor, offset)
    message = f"{worst:.1%} of scores are the same for values x {at[0]:g} + {at[1]:g}"
    return worst >= AFFINE_SHARE, message


def _sees(make: Make, rng: np.random.Generator) -> tuple[bool, str]:
    values = white(rng, NUM_SAMPLES)
    values[-20:] += 12.0
    strongest = max(score.strength for score in _feed(make(), values)[-20:])
    message = f"a shift of twelve deviations reaches p = {10.0**-strongest:.2g}"
    return strongest >= 3.0, message


def _calibrated(make: Make, values: Floats, slack: float) -> tuple[bool, str]:
    scores = _feed(make(), values)[len(values) // 2 :]
    told = [score.p_value for score in scores if score.p_value is not None]
    if not told:
        return False, "says nothing of two weeks of samples"
    seen, right = [], True
    for level in LEVELS:
        num = sum(p <= level for p in told)
        allowed = slack * level * len(told)
        # Four standard deviations of a count, for odd points come in runs.
        right = right and num <= allowed + 4.0 * math.sqrt(allowed)
        seen.append(f"p <= {level:g} in {num / len(told):.2%}")
    return right, f"where nothing is wrong, {' and '.join(seen)} of points"


def _restart(make: Make, rng: np.random.Generator) -> tuple[bool, str]:
    values = seasonal(rng, NUM_SAMPLES)
    half = NUM_SAMPLES // 2
    first = make()
    times = _times(NUM_SAMPLES)
    _feed(first, values[:half], times[:half])
    keep, again = getattr(first, "to_bytes", None), getattr(type(first), "from_bytes", None)
    if not callable(keep) or not callable(again):
        return True, "it offers no to_bytes() and from_bytes(), so nothing was checked"
    second = again(keep())
    rest = _feed(first, values[half:], times[half:])
    place = _first_difference(rest, _feed(second, values[half:], times[half:]))
    if place is None:
        return True, "a restored detector goes on bit-equal"
    return False, f"a restored detector differs {place} points after the restart"


def _memory(make: Make, rng: np.random.Generator, max_bytes: int) -> tuple[bool, str]:
    values = white(rng, FILL_SAMPLES + FILL_SAMPLES // 2)
    times = _times(len(values))
    was_tracing = tracemalloc.is_tracing()
    if not was_tracing:
        tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        detector = make()
        _drop(detector, values[:FILL_SAMPLES], times[:FILL_SAMPLES])
        full = tracemalloc.get_traced_memory()[0] - before
        _drop(detector, values[FILL_SAMPLES:], times[FILL_SAMPLES:])
        later = tracemalloc.get_traced_memory()[0] - before
    finally:
        if not was_tracing:
            tracemalloc.stop()
    message = (
        f"holds {full / 1024:.0f} KiB after {FILL_SAMPLES} points, {later / 1024:.0f} KiB after {len(values)}"
    )
    return later - full <= MAX_GROWTH_BYTES and later <= max_bytes, message


def _drop(detector: Detector, values: Floats, times: Floats) -> None:
    for value, when in zip(values, times, strict=True):
        detector.update(float(value), at_seconds=float(when))


def _speed(make: Make, rng: np.random.Generator, max_microseconds: float) -> tuple[bool, str]:
    detector, values, times = make(), seasonal(rng, NUM_SAMPLES), _times(NUM_SAMPLES)
    taken = np.empty(NUM_SAMPLES)
    for place in range(NUM_SAMPLES):
        began = time.perf_counter_ns()
        detector.update(float(values[place]), at_seconds=float(times[place]))
        taken[place] = (time.perf_counter_ns() - began) / 1e3
    middle, high = np.quantile(taken, [0.5, 0.99])
    message = f"{middle:.1f} microseconds a point in the middle, {high:.1f} at the 99th percentile"
    return bool(middle <= max_microseconds), message
