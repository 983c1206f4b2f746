"""Membership inference: who was in the training data, guessed from losses alone.

Two attacks: the loss itself, and LiRA-light, which asks of each unit how usual its loss is among models that saw
it and among models that did not. Shapes: M units that may have been in; K shadow models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from leptonai.core.errors import InputError
from leptonai.security.privacy.proof.canaries import OnStep, generator, run_with_half, smallest_p_value
from leptonai.security.privacy.proof.claims import Claim
from leptonai.security.privacy.proof.findings import FALSE_ALARM, Finding
from leptonai.security.privacy.proof.one_run import choices
from leptonai.security.privacy.proof.trainer import Floats, OpenTrainer, derived_key

FALSE_POSITIVES = 0.01
_SMALLEST_SPREAD = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A value and the ends of its 95 % confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """What an attack achieved.

    Args:
        name: of the attack.
        scores_M: higher: rather in.
        is_in_M: who was.
        area: under the curve of true over false positives; 0.5 is guessing.
        true_positives: share of members found where at most 1 % of the others are taken for members.
    """

    name: str
    scores_M: NDArray[np.float64]
    is_in_M: NDArray[np.bool_]
    area: Interval
    true_positives: Interval


def attack(name: str, scores_M: NDArray[np.float64], is_in_M: NDArray[np.bool_]) -> Attack:
    """Measure an attack by its scores.

    The intervals take units for independent, as is usual; they share one model, so they are a little too narrow.
    No verdict rests on them.

    Raises:
        InputError: everybody was in, or nobody.
    """
    if is_in_M.all() or not is_in_M.any():
        raise InputError("attack: expected some units in the data and some not")
    return Attack(
        name=name,
        scores_M=scores_M,
        is_in_M=is_in_M,
        area=_area(scores_M, is_in_M),
        true_positives=_true_positives(scores_M, is_in_M),
    )


def curve(found: Attack) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False and true positive shares at every threshold, from (0, 0) to (1, 1); equal scores move together."""
    order = np.argsort(-found.scores_M, kind="stable")
    scores, is_in = found.scores_M[order], found.is_in_M[order]
    last_of_equals = np.append(np.diff(scores) != 0, True)
    true = np.cumsum(is_in)[last_of_equals] / is_in.sum()
    false = np.cumsum(~is_in)[last_of_equals] / (~is_in).sum()
    return np.append(0.0, false), np.append(0.0, true)


def most_true_positives(false_positives: Any, *, epsilon: float, delta: float) -> Any:
    """The largest share of members that any attack finds, on average, against an (epsilon, delta) private run.

    Args:
        false_positives: share of the others that it takes for members; a number or an array.
        epsilon, delta: of the claim.

    Source: Kairouz, Oh and Viswanath 2015, Theorem 2.1 (both of its inequalities).

    >>> round(float(most_true_positives(0.01, epsilon=1.0, delta=1e-5)), 4)
    0.0272
    """
    larger = min(math.exp(min(epsilon, 700.0)), 1e300)
    return np.minimum(
        np.minimum(1.0, larger * np.asarray(false_positives) + delta),
        1 - (1 - delta - np.asarray(false_positives)) / larger,
    )


def loss_attack(
    trainer: OpenTrainer, *, num_units: int, num_steps: int, key: bytes, on_step: OnStep
) -> Attack:
    """Train with half of some units, and take those of small loss for members."""
    is_in_KM, losses_KM = _losses_of_models(
        trainer, num_units=num_units, num_models=1, num_steps=num_steps, key=key, on_step=on_step
    )
    return attack("loss", -losses_KM[0].astype(np.float64), is_in_KM[0])


def lira_attack(
    trainer: OpenTrainer, *, num_units: int, num_models: int, num_steps: int, key: bytes, on_step: OnStep
) -> tuple[Attack, Attack]:
    """The loss attack, and LiRA-light with ``num_models`` >= 2 shadow models, both on the same run.

    Source: Carlini et al. 2022 (arXiv:2112.03570), online attack with one spread for all units ("light").
    """
    if num_models < 2:
        raise InputError(f"lira_attack: expected num_models >= 2, found {num_models}")
    is_in_KM, losses_KM = _losses_of_models(
        trainer, num_units=num_units, num_models=1 + num_models, num_steps=num_steps, key=key, on_step=on_step
    )
    scores_M = lira_scores(losses_KM[0], losses_KM[1:], is_in_KM[1:])
    losses = attack("loss", -losses_KM[0].astype(np.float64), is_in_KM[0])
    return losses, attack("LiRA-light", scores_M, is_in_KM[0])


def lira_scores(losses_M: Floats, losses_KM: Floats, is_in_KM: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Logarithm of how much likelier a unit's loss is among the shadow models that saw it than among the others.

    Losses l are turned into log(p / (1 - p)) with p = exp(-l), which is nearly normal. A unit that no shadow model
    saw, or all, scores by the means of all units.
    """
    target_M, shadow_KM = _log_odds(losses_M), _log_odds(losses_KM)
    mean_in_M, spread_in = _fit(shadow_KM, is_in_KM)
    mean_out_M, spread_out = _fit(shadow_KM, ~is_in_KM)
    scores = stats.norm.logpdf(target_M, mean_in_M, spread_in)
    return np.asarray(scores - stats.norm.logpdf(target_M, mean_out_M, spread_out))


def membership_findings(attacks: Sequence[Attack], held: Sequence[Claim]) -> list[Finding]:
    """One row an attack: what it found of the members at 1 % false positives against the most that it may.

    The verdict is by the theorem of :mod:`leptonai.security.privacy.proof.one_run`, with guesses "in" only, which
    holds although all units share one model.
    """
    rows = []
    for found in attacks:
        tried = choices(found.scores_M, found.is_in_M, only_in=True, shares=(0.1, 0.4))
        chance = smallest_p_value(tried, held)
        area, share = found.area, found.true_positives
        rows.append(
            Finding(
                family="membership",
                name=f"{found.name}, TPR at 1 % FPR",
                measured=share.value,
                allowed=float(
                    most_true_positives(FALSE_POSITIVES, epsilon=held[0].epsilon, delta=held[0].delta)
                ),
                verdict="flagged" if chance < FALSE_ALARM else "ok",
                detail=f"95 % interval {share.low:.3f} to {share.high:.3f}; area under the curve {area.value:.3f} "
                f"({area.low:.3f} to {area.high:.3f}); p-value of the claim {chance:.2g}",
            )
        )
    return rows


def _losses_of_models(
    trainer: OpenTrainer, *, num_units: int, num_models: int, num_steps: int, key: bytes, on_step: OnStep
) -> tuple[NDArray[np.bool_], Floats]:
    random = generator(key, "membership")
    count = min(num_units, trainer.declared.num_units)
    units = random.choice(trainer.declared.num_units, count, replace=False)
    is_in_KM = random.random((num_models, count)) < 0.5
    losses = []
    for model, is_in in enumerate(is_in_KM):
        of_model = derived_key(key, f"model {model}")
        run_with_half(trainer, units=units, num_steps=num_steps, key=of_model, is_in=is_in, on_step=on_step)
        losses.append(trainer.losses(units))
    return is_in_KM, np.stack(losses)


def _log_odds(losses: Floats) -> NDArray[np.float64]:
    likely = np.exp(-np.clip(losses.astype(np.float64), 1e-9, 50.0))
    return np.asarray(np.log(likely) - np.log1p(-likely))


def _fit(values_KM: NDArray[np.float64], mask_KM: NDArray[np.bool_]) -> tuple[NDArray[np.float64], float]:
    """Each unit's mean over its models, and the spread about them that all units share."""
    counts_M = mask_KM.sum(axis=0)
    sums_M = np.where(mask_KM, values_KM, 0.0).sum(axis=0)
    overall = float(sums_M.sum() / max(1, counts_M.sum()))
    means_M = np.where(counts_M > 0, sums_M / np.maximum(1, counts_M), overall)
    squares = float(np.where(mask_KM, (values_KM - means_M) ** 2, 0.0).sum())
    freedom = int(counts_M.sum() - (counts_M > 0).sum())
    return means_M, max(_SMALLEST_SPREAD, math.sqrt(squares / freedom) if freedom > 0 else 1.0)


def _area(scores_M: NDArray[np.float64], is_in_M: NDArray[np.bool_]) -> Interval:
    """By ranks; the interval is Hanley and McNeil's (1982)."""
    num_in, num_out = int(is_in_M.sum()), int((~is_in_M).sum())
    ranks = stats.rankdata(scores_M)
    area = float((ranks[is_in_M].sum() - num_in * (num_in + 1) / 2) / (num_in * num_out))
    first, second = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (num_in - 1) * (first - area**2) + (num_out - 1) * (second - area**2)
    wide = 1.96 * math.sqrt(max(0.0, variance) / (num_in * num_out))
    return Interval(value=area, low=max(0.0, area - wide), high=min(1.0, area + wide))


def _true_positives(scores_M: NDArray[np.float64], is_in_M: NDArray[np.bool_]) -> Interval:
    """Share of members above the threshold that at most 1 % of the others exceed; Clopper-Pearson interval."""
    others = np.sort(scores_M[~is_in_M])[::-1]
    threshold = others[math.floor(FALSE_POSITIVES * len(others))]
    found, members = int((scores_M[is_in_M] > threshold).sum()), int(is_in_M.sum())
    interval = stats.binomtest(found, members).proportion_ci(0.95)
    return Interval(value=found / members, low=float(interval.low), high=float(interval.high))
