"""A curve that suddenly rises: spikes of a loss, passing or lasting, and explosions of a gradient.

How. What a curve is above a running mean of itself is its *residual*; a curve that falls leaves residuals below zero,
which are no matter. It is taken twice: of the logarithm, which suits curves that vary by factors, and of the curve
itself over that mean, which suits a loss that is often nearly nothing. Two tests look at each: whether one residual
alone is beyond what the largest of the last 500 make likely (an exponential tail, fitted to their top twentieth), and
whether several together are, by cumulative sums whose increments have an exponential of mean at most one where nothing
has changed (Shin, Ramdas and Rinaldo 2022, "E-detectors", theorem 2.4; the mean is the one seen so far). Both are set
to be wrong less than once in a million steps.

A rise that is back within a hundred steps has passed; one that is not is a divergence.
"""

from __future__ import annotations

import math
from collections import deque

from leptonai.operations.watch.finding import CurveFinding

LEVEL_STEPS = 30
"""The running mean follows a curve over so many steps; slower than a spike, faster than learning."""
NUM_RESIDUALS = 500
WARM_UP_STEPS = 150
"""Before so many residuals nothing is said: the first steps of a run fall steeply."""
TAIL_SHARE = 0.05
FALSE_SHARE = 1e-7
"""Of steps at which the tail test may be wrong, were the tail exponential; real ones are heavier."""
EVIDENCE_TO_TELL = 17.0
"""Of a cumulative sum: ``e**17`` steps to a false alarm at least, each."""
RATES = (0.25, 0.5, 1.0, 2.0)
CLIP_SCORE = 4.0
"""One step convinces no cumulative sum."""
GROWTH_STEPS = 1000
FIT_STEPS = 10
"""Between two fits of the tail: sorting 500 numbers each step would cost more than all else."""
RECOVERY_STEPS = 8
"""A curve is back when the mean of so many steps is."""
LASTING_STEPS = 100
"""PaLM's spikes that passed did so within some hundred steps (Chowdhery et al. 2022, section 5.1)."""
LONGEST_STEPS = 2000
"""A level held for so long is the new one; the alarm stays, and the watch begins anew."""
SMALLEST = 1e-12


class RiseWatch:
    """Follows one positive curve, step by step.

    Args:
        kind: of the finding, such as ``loss_spike``.
        what: what rises, in words.
        least_ratio: rises below it are no news, however sure.
        lasting_kind: of the finding when the rise does not pass; empty: none is made.

    >>> import random
    >>> rng, watch, found = random.Random(1), RiseWatch("loss_spike", "the loss"), []
    >>> for step in range(1000):
    ...     loss = (1.0 + 20.0 / (10 + step)) * rng.lognormvariate(0.0, 0.1)
    ...     found += watch.update(step, loss * (4.0 if 700 <= step < 720 else 1.0))
    >>> [(each.kind, each.since_step, each.over) for each in found]
    [('loss_spike', 700, False), ('loss_spike', 700, True)]
    """

    def __init__(self, kind: str, what: str, *, least_ratio: float = 1.05, lasting_kind: str = "") -> None:
        self._kind, self._what, self._lasting_kind = kind, what, lasting_kind
        self._least_ratio = least_ratio
        self.begin_anew()

    def begin_anew(self) -> None:
        """What was usual no longer is: after a restart, or when the run goes on from an earlier step."""
        self._logs = RiseTest(math.log(self._least_ratio))
        self._ratios = RiseTest(self._least_ratio - 1.0)
        self._log_level = self._level = math.nan
        self._num_levels = 0
        self._rise: _Rise | None = None

    def update(self, step: int, value: float) -> tuple[CurveFinding, ...]:
        """Take in the curve's value at a step, finite; not above zero counts as very small."""
        value = max(value, SMALLEST)
        if self._rise is not None:
            return self._while_risen(self._rise, step, value)
        if math.isnan(self._level):
            self._log_level, self._level, self._num_levels = math.log(value), value, 1
            return ()
        log_residual, ratio_residual = math.log(value) - self._log_level, value / self._level - 1.0
        began = [self._logs.look(step, log_residual), self._ratios.look(step, ratio_residual)]
        found = [each for each in began if each is not None]
        if found and ratio_residual > 0.0:
            self._rise = _Rise(since=min(found), level=self._level, spread=self._ratios.spread)
            self._rise.recent.append(value)
            return (self._begun(self._rise, step, value),)
        self._logs.learn(log_residual)
        self._ratios.learn(ratio_residual)
        self._num_levels = min(self._num_levels + 1, LEVEL_STEPS)
        self._log_level += self._logs.limited(log_residual) / self._num_levels
        self._level *= 1.0 + self._ratios.limited(ratio_residual) / self._num_levels
        return ()

    def _begun(self, rise: _Rise, step: int, value: float) -> CurveFinding:
        message = f"{self._what} rose to {value:.4g} at step {step}, from {rise.level:.4g}"
        evidence = (
            f"usual was {rise.level:.4g}, within {100.0 * rise.spread:.0f} %; "
            f"it is {value / rise.level:.3g} times that"
        )
        return CurveFinding(kind=self._kind, since_step=rise.since, message=message, evidence=(evidence,))

    def _while_risen(self, rise: _Rise, step: int, value: float) -> tuple[CurveFinding, ...]:
        rise.recent.append(value)
        rise.num_steps += 1
        if rise.is_back(self._least_ratio):
            self._rise = None
            self._logs.forget_evidence()
            self._ratios.forget_evidence()
            kinds = (self._kind, *([self._lasting_kind] if rise.lasts else []))
            message = f"{self._what} is back at {rise.mean():.4g} after {rise.num_steps} steps"
            return tuple(
                CurveFinding(kind=kind, since_step=rise.since, message=message, over=True) for kind in kinds
            )
        if rise.num_steps == LONGEST_STEPS:
            self.begin_anew()
        if rise.num_steps != LASTING_STEPS or not self._lasting_kind:
            return ()
        rise.lasts = True
        message = f"{self._what} has stayed above {rise.level:.4g} for {LASTING_STEPS} steps; it is {rise.mean():.4g}"
        evidence = f"it rose at step {rise.since}, and did not come back"
        return (
            CurveFinding(
                kind=self._lasting_kind, since_step=rise.since, message=message, severity="critical",
                action="check_job", evidence=(evidence,),
            ),
        )  # fmt: skip


class RiseTest:
    """Whether residuals have become larger; see the module.

    Args:
        least: a residual, or a mean of them, below it is no news.
    """

    def __init__(self, least: float) -> None:
        self.spread = 0.0
        """Robust deviation of the residuals; 0 until there are some."""
        self._least = least
        self._residuals: deque[float] = deque(maxlen=NUM_RESIDUALS)
        self._growth = [math.exp(0.5 * rate * rate) for rate in RATES]
        self._threshold, self._until_fit = math.inf, 0
        self.forget_evidence()

    def forget_evidence(self) -> None:
        """A rise was told: what led to it must not lead to another."""
        self._sums, self._since = [0.0] * len(RATES), [0] * len(RATES)

    def limited(self, residual: float) -> float:
        """A residual as a running mean may take it in: a single large one must not drag the mean along."""
        most = 3.0 * self.spread
        return max(-most, min(most, residual)) if most > 0.0 else residual

    def look(self, step: int, residual: float) -> int | None:
        """Since when residuals are larger; None: they are not, or there are too few to tell."""
        if len(self._residuals) < WARM_UP_STEPS:
            return None
        if self._until_fit <= 0:
            self._fit()
        self._until_fit -= 1
        if residual >= max(self._threshold, self._least):
            return step
        score = self._score(residual)
        found = None
        for at, rate in enumerate(RATES):
            price = max(math.log(self._growth[at]), 0.6 * rate * rate)
            if self._sums[at] <= 0.0:
                self._since[at] = step
            self._sums[at] = max(0.0, self._sums[at] + rate * score - price)
            num_steps = step - self._since[at] + 1
            mean = (self._sums[at] + price * num_steps) / (rate * num_steps) * self.spread
            if self._sums[at] >= EVIDENCE_TO_TELL and mean >= self._least:
                found = self._since[at]
        return found

    def learn(self, residual: float) -> None:
        """Take in a residual of a step without a rise."""
        if self.spread > 0.0:
            score = self._score(residual)
            for at, rate in enumerate(RATES):
                self._growth[at] += (math.exp(rate * score) - self._growth[at]) / GROWTH_STEPS
        self._residuals.append(residual)

    def _score(self, residual: float) -> float:
        return max(-CLIP_SCORE, min(CLIP_SCORE, residual / self.spread))

    def _fit(self) -> None:
        """Where the largest residuals say that one of millions lies, and how large residuals are."""
        self._until_fit = FIT_STEPS
        ordered = sorted(self._residuals)
        num_tail = max(3, int(TAIL_SHARE * len(ordered)))
        begin = ordered[-num_tail - 1]
        excess = sum(each - begin for each in ordered[-num_tail:]) / num_tail
        share = num_tail / len(ordered)
        self._threshold = begin + max(excess, 1e-9) * math.log(share / FALSE_SHARE)
        middle = ordered[len(ordered) // 2]
        away = sorted(abs(each - middle) for each in ordered)
        # 1.4826: deviation of a normal distribution over its median absolute deviation.
        self.spread = max(1.4826 * away[len(away) // 2], 1e-6)


class _Rise:
    """A rise that goes on."""

    def __init__(self, *, since: int, level: float, spread: float) -> None:
        self.since, self.level, self.spread = since, level, spread
        self.num_steps, self.lasts = 0, False
        self.recent: deque[float] = deque(maxlen=RECOVERY_STEPS)

    def mean(self) -> float:
        return sum(self.recent) / len(self.recent)

    def is_back(self, least_ratio: float) -> bool:
        """Whether the mean of some steps is where the curve was, as far as its spread lets one tell."""
        room = max(3.0 * self.spread / math.sqrt(RECOVERY_STEPS), 0.5 * (least_ratio - 1.0))
        return len(self.recent) == RECOVERY_STEPS and self.mean() <= self.level * (1.0 + room)
