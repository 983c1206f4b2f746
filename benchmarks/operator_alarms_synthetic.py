"""Seeded synthetic series with injected incidents, for ``operator_alarms``.

Three weeks at one sample in five minutes, of one of the sorts that machines give; the first ten days are healthy,
and a quarter of the series all the time. Sizes of incidents are drawn in units of the series' own noise, so that
some are plain and some can hardly be seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from benchmarks.operator_alarms_series import AFTER_SAMPLES, Incident, Labelled

PERIOD_SECONDS = 300.0
SAMPLES_A_DAY = 288
NUM_DAYS = 21
HEALTHY_DAYS = 10
"""A weekly pattern has been seen once when the first incident may come."""
START_SECONDS = 1_700_000_000.0
MEASURED_SEED = 20_000
"""First seed of the series that are measured; whatever has a default was chosen on seeds from 1 up."""
NUM_SERIES = 70
MAX_INCIDENTS = 3
GAP_SAMPLES = SAMPLES_A_DAY
"""At least so much health between two incidents."""
DIGITS = 4
"""To which values are rounded, as exporters do."""

Floats = NDArray[np.float64]


def injected_series(first_seed: int = MEASURED_SEED, num_series: int = NUM_SERIES) -> Iterator[Labelled]:
    """Synthetic series, one a seed; sorts take turns."""
    sorts = tuple(SORTS)
    for seed in range(first_seed, first_seed + num_series):
        sort = sorts[(seed - first_seed) % len(sorts)]
        yield synthetic(sort, np.random.default_rng(seed), name=f"{sort}-{seed}")


def synthetic(sort: str, rng: np.random.Generator, *, name: str) -> Labelled:
    """One series of a sort, with up to three incidents or none.

    >>> synthetic("load", np.random.default_rng(1), name="a").values.shape
    (6048,)
    """
    num_samples = NUM_DAYS * SAMPLES_A_DAY
    values, noise = SORTS[sort](rng, num_samples)
    incidents = []
    begin = HEALTHY_DAYS * SAMPLES_A_DAY
    for _ in range(int(rng.integers(0, MAX_INCIDENTS + 1))):
        kind = str(rng.choice(list(INCIDENTS)))
        (shortest, longest), inject = INCIDENTS[kind]
        begin += int(rng.integers(0, 2 * SAMPLES_A_DAY))
        length = int(rng.integers(shortest, longest + 1))
        if begin + length + AFTER_SAMPLES >= num_samples:
            break
        values[begin : begin + length] = inject(values, begin, length, noise, rng)
        incidents.append(Incident(kind=kind, begin=begin, end=begin + length - 1))
        begin += length + GAP_SAMPLES
    rounded = np.maximum(values, 0.0).round(DIGITS).astype(np.float64)
    at_seconds = (START_SECONDS + PERIOD_SECONDS * np.arange(num_samples)).astype(np.float64)
    return Labelled(name=name, at_seconds=at_seconds, values=rounded, incidents=tuple(incidents))


def _correlated(rng: np.random.Generator, num_samples: int, memory: float) -> Floats:
    """Autoregressive noise of variance 1."""
    kicks = rng.standard_normal(num_samples) * np.sqrt(1.0 - memory**2)
    noise = np.empty(num_samples)
    last = 0.0
    for place, kick in enumerate(kicks):
        last = memory * last + float(kick)
        noise[place] = last
    return noise


def _season(rng: np.random.Generator, num_samples: int) -> Floats:
    """A day's shape, weaker at weekends, between about -1 and 1."""
    day = np.arange(num_samples) / SAMPLES_A_DAY
    shape = np.sin(2 * np.pi * (day + rng.uniform())) + rng.uniform(0.1, 0.6) * np.sin(
        4 * np.pi * (day + rng.uniform())
    )
    weekend = (np.floor(day) % 7) >= 5
    return np.asarray(shape * np.where(weekend, rng.uniform(0.3, 1.0), 1.0))


def _load(rng: np.random.Generator, num_samples: int) -> tuple[Floats, float]:
    """Of a service: day and week, correlated noise, now and then a short burst as part of its life."""
    noise = float(rng.uniform(1.0, 4.0))
    values = 50.0 + rng.uniform(8.0, 25.0) * _season(rng, num_samples)
    values += noise * _correlated(rng, num_samples, 0.6)
    bursts = rng.random(num_samples) < 0.004
    return values + bursts * rng.exponential(4.0 * noise, num_samples), noise


def _latency(rng: np.random.Generator, num_samples: int) -> tuple[Floats, float]:
    """Log-normal about a daily shape: the noise grows with the level."""
    spread = float(rng.uniform(0.08, 0.2))
    log = np.log(40.0) + 0.3 * _season(rng, num_samples) + spread * _correlated(rng, num_samples, 0.3)
    return np.exp(log), 40.0 * spread


def _counter_rate(rng: np.random.Generator, num_samples: int) -> tuple[Floats, float]:
    """Requests counted, as a rate a second: Poisson about a daily shape, zero for a sample where it was reset."""
    mean = rng.uniform(20.0, 200.0)
    counts = rng.poisson(mean * np.exp(0.6 * _season(rng, num_samples))).astype(np.float64)
    counts[rng.random(num_samples) < 0.0005] = 0.0
    return counts / PERIOD_SECONDS * 10.0, float(np.sqrt(mean) / PERIOD_SECONDS * 10.0)


def _temperature(rng: np.random.Generator, num_samples: int) -> tuple[Floats, float]:
    """Slow: long memory, a little of the day, whole tenths of a degree."""
    noise = float(rng.uniform(0.8, 2.0))
    values = 60.0 + 2.0 * _season(rng, num_samples) + noise * _correlated(rng, num_samples, 0.97)
    return np.round(values + 0.2 * rng.standard_normal(num_samples), 1), noise


def _queue(rng: np.random.Generator, num_samples: int) -> tuple[Floats, float]:
    """Mostly empty, with bursts of work that run down."""
    values = np.zeros(num_samples)
    depth = 0.0
    for place in range(num_samples):
        if rng.random() < 0.03:
            depth += float(rng.exponential(20.0))
        depth = max(0.0, 0.7 * depth - 0.5)
        values[place] = round(depth)
    return values, 8.0


def _memory(rng: np.random.Generator, num_samples: int) -> tuple[Floats, float]:
    """A saw: it grows and is collected, at a period of its own."""
    period = int(rng.integers(20, 120))
    phase = (np.arange(num_samples) + int(rng.integers(period))) % period / period
    noise = float(rng.uniform(0.3, 1.0))
    return 40.0 + 12.0 * phase + noise * rng.standard_normal(num_samples), noise


def _plain(rng: np.random.Generator, num_samples: int) -> tuple[Floats, float]:
    """No season: white noise, heavy in the tail as times of a disk are."""
    noise = float(rng.uniform(0.5, 2.0))
    return 20.0 + noise * rng.standard_t(5, num_samples), noise


SORTS: dict[str, Callable[[np.random.Generator, int], tuple[Floats, float]]] = {
    "load": _load,
    "latency": _latency,
    "counter": _counter_rate,
    "temperature": _temperature,
    "queue": _queue,
    "memory": _memory,
    "plain": _plain,
}
"""By name: values and the size of their noise."""

Inject = Callable[[Floats, int, int, float, np.random.Generator], Floats]


def _level(values: Floats, begin: int, length: int, noise: float, rng: np.random.Generator) -> Floats:
    return np.asarray(
        values[begin : begin + length] + rng.choice([-1.0, 1.0]) * rng.uniform(3.0, 8.0) * noise
    )


def _spike(values: Floats, begin: int, length: int, noise: float, rng: np.random.Generator) -> Floats:
    return np.asarray(
        values[begin : begin + length] + rng.choice([-1.0, 1.0]) * rng.uniform(6.0, 15.0) * noise
    )


def _spread(values: Floats, begin: int, length: int, noise: float, rng: np.random.Generator) -> Floats:
    return values[begin : begin + length] + rng.uniform(3.0, 6.0) * noise * rng.standard_normal(length)


def _no_season(values: Floats, begin: int, length: int, noise: float, rng: np.random.Generator) -> Floats:
    past = values[begin - SAMPLES_A_DAY : begin]
    return np.asarray(past.mean() + noise * _correlated(rng, length, 0.5))


def _drift(values: Floats, begin: int, length: int, noise: float, rng: np.random.Generator) -> Floats:
    size = rng.choice([-1.0, 1.0]) * rng.uniform(5.0, 12.0) * noise
    return np.asarray(values[begin : begin + length] + size * np.linspace(0.0, 1.0, length))


def _flat(values: Floats, begin: int, length: int, noise: float, rng: np.random.Generator) -> Floats:
    return np.full(length, values[begin])


def _shape(values: Floats, begin: int, length: int, noise: float, rng: np.random.Generator) -> Floats:
    """The course of the time before, backwards in time."""
    return values[begin - length : begin][::-1].copy()


INCIDENTS: dict[str, tuple[tuple[int, int], Inject]] = {
    "level shift": ((24, 288), _level),
    "spike": ((1, 3), _spike),
    "variance": ((36, 200), _spread),
    "season lost": ((216, 432), _no_season),
    "slow drift": ((144, 432), _drift),
    "flat line": ((36, 144), _flat),
    "shape": ((144, 288), _shape),
}
"""By name: shortest and longest length in samples, and the values instead."""
