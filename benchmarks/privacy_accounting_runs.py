"""One part of the grid of ``privacy_accounting``: the oracle's epsilon, ours, and the seconds ours took.

``python -m benchmarks.privacy_accounting_runs --report FILE --part 0 --parts 4 [--quick]``

The rule that draws the grid looks at no loss distribution, ours or the oracle's; see :func:`settings`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from leptonai.security.privacy.accounting.accountant import epsilon
from leptonai.security.privacy.accounting.mechanisms import Charge, SampledGaussian
from leptonai.security.privacy.accounting.rdp import rdp_epsilon

INTERVAL = 1e-5
"""The oracle's value discretisation."""
SEED = 4
TIERS = ((50_000, 100), (100_000, 60), (200_000, 30), (600_000, 10))
"""How many settings the grid holds whose single step has up to so many points on the oracle's grid.

The oracle works point by point there, about 16 s a million; its composition is quick beside that.
"""
FINEST = 20
"""Settings are kept where q / sigma, about the deviation of one step's loss, is at least so many intervals.

Connecting dots h apart adds h^2 / 6 to the variance of a step's loss. From 20 intervals on that is at most 0.05 %
of the variance, and so about 0.02 % of epsilon, by which the oracle itself may lie above the truth.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One training run to account for."""

    sample_rate: float
    noise_multiplier: float
    steps: int
    delta: float

    def charges(self) -> list[Charge]:
        """As our accountant takes it."""
        mechanism = SampledGaussian(noise_multiplier=self.noise_multiplier, sample_rate=self.sample_rate)
        return [Charge(mechanism=mechanism, count=self.steps)]

    def __str__(self) -> str:
        return f"q {self.sample_rate:.3g}, sigma {self.noise_multiplier:.3g}, T {self.steps}, delta {self.delta:.2g}"


def candidates() -> Iterator[Setting]:
    """Endless settings, log-uniform in their ranges; a tenth without sampling."""
    random = np.random.default_rng(SEED)

    def between(low: float, high: float) -> float:
        return float(math.exp(random.uniform(math.log(low), math.log(high))))

    while True:
        yield Setting(
            sample_rate=1.0 if random.random() < 0.1 else between(1e-4, 1.0),
            noise_multiplier=between(0.5, 20.0),
            steps=round(between(1, 20_000)),
            delta=between(1e-10, 1e-5),
        )


def settings() -> list[Setting]:
    """The grid: candidates in their order, until every tier is full.

    Kept are those whose epsilon by Renyi divergences lies in [0.05, 20], and whose oracle is feasible (its points
    fit a tier that has room) and precise (:data:`FINEST`).
    """
    room = [count for _, count in TIERS]
    kept: list[Setting] = []
    for setting in candidates():
        if not any(room):
            return kept
        num_points = _range_of_one(setting) / INTERVAL
        tier = next((index for index, (most, _) in enumerate(TIERS) if num_points <= most), None)
        if tier is None or not room[tier]:
            continue
        if setting.sample_rate / setting.noise_multiplier < FINEST * INTERVAL:
            continue
        if 0.05 <= rdp_epsilon(setting.charges(), delta=setting.delta) <= 20:
            room[tier] -= 1
            kept.append(setting)
    raise AssertionError("unreachable: candidates never end")


def _range_of_one(setting: Setting) -> float:
    """Range of the loss of one step, within ten deviations of noise."""
    rate, sigma = setting.sample_rate, setting.noise_multiplier
    top = (1 + 20 * sigma) / (2 * sigma**2)
    if rate == 1:
        return 2 * top
    return float(np.logaddexp(math.log1p(-rate), math.log(rate) + top)) - math.log1p(-rate)


def oracle(setting: Setting) -> float:
    """Epsilon by dp-accounting's privacy loss distributions (connect the dots, pessimistic)."""
    from dp_accounting.pld import privacy_loss_distribution

    one = privacy_loss_distribution.from_gaussian_mechanism(
        setting.noise_multiplier,
        value_discretization_interval=INTERVAL,
        sampling_prob=setting.sample_rate,
    )
    return float(one.self_compose(setting.steps).get_epsilon_for_delta(setting.delta))


def main() -> int:
    """Compute one part and write its report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--part", type=int, required=True)
    parser.add_argument("--parts", type=int, required=True)
    parser.add_argument("--quick", action="store_true")
    words = parser.parse_args()
    if words.quick:
        chosen = [Setting(sample_rate=0.01, noise_multiplier=4.0, steps=1_000, delta=1e-5)]
    else:
        chosen = settings()[words.part :: words.parts]
    report: dict[str, list[float] | list[str]] = {}
    rows = []
    for setting in chosen:
        theirs = oracle(setting)
        wall, started = time.perf_counter(), time.process_time()
        ours = epsilon(setting.charges(), delta=setting.delta)
        seconds, waited = time.process_time() - started, time.perf_counter() - wall
        rows.append((theirs, ours, 100 * (ours / theirs - 1), seconds, waited))
        sys.stderr.write(f"{setting}: {theirs:.6f} {ours:.6f} {rows[-1][2]:+.4f} % {seconds:.3f} s\n")
        sys.stderr.flush()
    for index, name in enumerate(("oracle", "ours", "percent", "seconds", "wall")):
        report[name] = [row[index] for row in rows]
    report["settings"] = [str(setting) for setting in chosen]
    words.report.write_text(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
