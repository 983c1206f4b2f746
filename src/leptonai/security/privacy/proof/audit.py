"""The three checks of a private trainer in one go, and what they found as a value."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from leptonai.core.errors import InputError
from leptonai.security.privacy.proof.canaries import (
    OnStep,
    bound_of,
    canary_finding,
    run_with_canaries,
    run_with_input_canaries,
)
from leptonai.security.privacy.proof.claims import Claim, accounting_findings, claims, statement_findings
from leptonai.security.privacy.proof.findings import FALSE_ALARM, Finding, skipped
from leptonai.security.privacy.proof.membership import (
    Attack,
    curve,
    lira_attack,
    loss_attack,
    membership_findings,
)
from leptonai.security.privacy.proof.neighbours import control_flow_finding, sensitivity_findings
from leptonai.security.privacy.proof.noise_check import noise_findings
from leptonai.security.privacy.proof.one_run import LowerBound
from leptonai.security.privacy.proof.sampler_check import sampler_findings
from leptonai.security.privacy.proof.statement import Statement
from leptonai.security.privacy.proof.trainer import Declared, OpenTrainer, derived_key

SHOWN_CONFIDENCE = 0.95
MAX_CURVE_POINTS = 200
FEWEST_CANARIES = 20

Progress = Callable[[str, int, int], None]
"""Called with what is being done, steps done, and steps in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much work an audit is.

    Args:
        num_canaries: at most; fewer where the model or the data is smaller.
        num_input_canaries: wrongly labelled examples, at most half of the units; 0 leaves them out.
        num_steps: of each training run of the audit; None: as many as the run has. With fewer, the bounds still
            hold, but find less.
        with_data: whether units of the data take part beside the gradient canaries; their part is taken off the
            scores, so it matters only where the clip follows the data, and costs a whole training run.
        membership_units: units that membership is guessed for; 0 leaves the attacks out.
        shadow_models: for LiRA-light, each a training run; 0 leaves it out.

    Raises:
        InputError: a number is negative, or there is one shadow model.
    """

    num_canaries: int = 1000
    num_input_canaries: int = 0
    num_steps: int | None = None
    with_data: bool = False
    membership_units: int = 500
    shadow_models: int = 0

    def __post_init__(self) -> None:
        counts = (self.num_canaries, self.num_input_canaries, self.membership_units, self.shadow_models)
        if min(counts) < 0 or self.shadow_models == 1:
            raise InputError("Effort: expected counts >= 0, and no shadow model or at least two")
        if self.num_steps is not None and self.num_steps < 1:
            raise InputError(f"Effort: expected num_steps >= 1, found {self.num_steps}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What the checks found.

    Args:
        epsilon, delta: the claim.
        findings: rows of all three checks.
        bounds: empirical lower bounds on epsilon, at 95 % and 99.9 % confidence; empty without canaries.
        attacks: on membership.
        num_steps: of each training run of the audit, and of the whole run.
    """

    epsilon: float
    delta: float
    findings: tuple[Finding, ...]
    bounds: tuple[LowerBound, ...]
    attacks: tuple[Attack, ...]
    num_steps: int
    total_steps: int

    @property
    def flagged(self) -> tuple[Finding, ...]:
        """The rows by which the claim cannot hold."""
        return tuple(row for row in self.findings if row.verdict == "flagged")

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values; the attacks' curves with at most 200 points, no scores of single units."""
        return {
            "format": "lepton-privacy-audit",
            "version": 1,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "flagged": [row.name for row in self.flagged],
            "steps_of_an_audit_run": self.num_steps,
            "steps_of_the_run": self.total_steps,
            "lower_bounds": [
                {
                    "epsilon": bound.epsilon,
                    "confidence": bound.confidence,
                    "canaries": bound.guesses.num_units,
                }
                for bound in self.bounds
            ],
            "findings": [row.to_json() for row in self.findings],
            "attacks": [_attack_to_json(each) for each in self.attacks],
        }


def audit_trainer(
    trainer: OpenTrainer, *, key: bytes, effort: Effort | None = None, on_progress: Progress = lambda *_: None
) -> Audit:
    """Hold a trainer to what it declares; nothing that it trains here is released.

    Args:
        trainer: opened up; its weights are overwritten.
        key: of all randomness; the same key gives the same audit. Fresh and secret where the audit's own output
            shall tell nothing else.
        effort: how much work.
        on_progress: called as the work goes on.
    """
    effort = effort or Effort()
    declared = trainer.declared
    num_steps = min(effort.num_steps or declared.steps, declared.steps)
    steps = _Steps(on_progress, total=_total_steps(effort, declared, num_steps))
    held = claims(declared, num_steps=num_steps)
    rows = accounting_findings(declared)
    with steps.named("neighbouring data") as on_step:
        rows += sensitivity_findings(trainer, key=derived_key(key, "sensitivity"), on_step=on_step)
        rows.append(control_flow_finding(trainer, key=derived_key(key, "replay"), on_step=on_step))
    with steps.named("noise and sampler"):
        rows += noise_findings(trainer, key=derived_key(key, "noise"))
        rows += sampler_findings(trainer, key=derived_key(key, "sampler"))
    with steps.named("canaries") as on_step:
        found, bounds = _canaries(trainer, effort, held, key, (num_steps, on_step))
        rows += found
    with steps.named("membership") as on_step:
        attacks = _attacks(trainer, effort, num_steps, key, on_step)
    rows += membership_findings(attacks, held)
    if not attacks:
        rows.append(skipped("membership", "attacks", "left out: too few units, or not asked for"))
    return Audit(
        epsilon=declared.epsilon, delta=declared.delta, findings=tuple(rows), bounds=bounds,
        attacks=tuple(attacks), num_steps=num_steps, total_steps=declared.steps,
    )  # fmt: skip


def with_statement(found: Audit, made: Statement, declared: Declared) -> Audit:
    """The audit with rows, first of all, on whether the written statement says what the trainer does."""
    return replace(found, findings=(*statement_findings(made, declared), *found.findings))


def _canaries(
    trainer: OpenTrainer, effort: Effort, held: tuple[Claim, ...], key: bytes, steps: tuple[int, OnStep]
) -> tuple[list[Finding], tuple[LowerBound, ...]]:
    (num_steps, on_step), declared = steps, trainer.declared
    rows: list[Finding] = []
    bounds: tuple[LowerBound, ...] = ()
    name = "epsilon, lower bound"
    count = _num_canaries(effort, declared)
    if count:
        run = run_with_canaries(
            trainer, num_canaries=count, num_steps=num_steps, key=derived_key(key, "canaries"),
            with_data=effort.with_data, on_step=on_step,
        )  # fmt: skip
        rows.append(canary_finding(run, held, name=name))
        bounds = tuple(
            bound_of(run, delta=declared.delta, confidence=confidence)
            for confidence in (SHOWN_CONFIDENCE, 1 - FALSE_ALARM)
        )
    else:
        rows.append(skipped("canaries", name, f"left out, or no room for {FEWEST_CANARIES} canaries"))
    count = _num_input_canaries(effort, declared)
    if count:
        run = run_with_input_canaries(
            trainer,
            num_canaries=count,
            num_steps=num_steps,
            key=derived_key(key, "input canaries"),
            on_step=on_step,
        )
        rows.append(canary_finding(run, held, name=f"{name}, by losses"))
    return rows, bounds


def _num_canaries(effort: Effort, declared: Declared) -> int:
    count = min(effort.num_canaries, declared.num_parameters, declared.num_units)
    return count if count >= FEWEST_CANARIES else 0


def _num_input_canaries(effort: Effort, declared: Declared) -> int:
    count = min(effort.num_input_canaries, declared.num_units // 2)
    return count if count >= FEWEST_CANARIES else 0


def _attacks(
    trainer: OpenTrainer, effort: Effort, num_steps: int, key: bytes, on_step: OnStep
) -> list[Attack]:
    count = min(effort.membership_units, trainer.declared.num_units)
    if count < FEWEST_CANARIES:
        return []
    key = derived_key(key, "membership")
    if effort.shadow_models == 0:
        return [loss_attack(trainer, num_units=count, num_steps=num_steps, key=key, on_step=on_step)]
    return list(
        lira_attack(
            trainer, num_units=count, num_models=effort.shadow_models, num_steps=num_steps, key=key,
            on_step=on_step,
        )
    )  # fmt: skip


def _total_steps(effort: Effort, declared: Declared, num_steps: int) -> int:
    runs = int(_num_canaries(effort, declared) > 0) + int(_num_input_canaries(effort, declared) > 0)
    if min(effort.membership_units, declared.num_units) >= FEWEST_CANARIES:
        runs += 1 + effort.shadow_models
    return runs * num_steps + 9


class _Steps:
    """Counts steps and tells how far the audit is."""

    def __init__(self, on_progress: Progress, *, total: int) -> None:
        self._on_progress = on_progress
        self._total = total
        self._done = 0
        self._name = ""

    def named(self, name: str) -> _Steps:
        self._name = name
        self._on_progress(name, self._done, self._total)
        return self

    def __enter__(self) -> OnStep:
        return self._step

    def __exit__(self, *_: object) -> None:
        self._on_progress(self._name, self._done, self._total)

    def _step(self) -> None:
        self._done = min(self._done + 1, self._total)
        self._on_progress(self._name, self._done, self._total)


def _attack_to_json(found: Attack) -> dict[str, Any]:
    false, true = curve(found)
    kept = np.unique(np.linspace(0, len(false) - 1, min(len(false), MAX_CURVE_POINTS)).round().astype(int))
    return {
        "name": found.name,
        "units": len(found.is_in_M),
        "area": _interval(found.area.value, found.area.low, found.area.high),
        "true_positives_at_1_percent": _interval(
            found.true_positives.value, found.true_positives.low, found.true_positives.high
        ),
        "false_positives": [round(float(value), 6) for value in false[kept]],
        "true_positives": [round(float(value), 6) for value in true[kept]],
    }


def _interval(value: float, low: float, high: float) -> dict[str, float]:
    return {
        name: number
        for name, number in (("value", value), ("low", low), ("high", high))
        if math.isfinite(number)
    }
