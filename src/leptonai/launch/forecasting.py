"""The forecast of a run on this machine: from its traced operations, the probe's rates and what runs taught."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from leptonai.compute.cluster import Cluster
from leptonai.compute.forecast import Forecast, PhaseCheck, PhaseForecast, check
from leptonai.compute.measured import Measured
from leptonai.compute.plan import Plan
from leptonai.compute.prediction.correction import NO_CORRECTION, Correction, learn
from leptonai.compute.prediction.local_predictor import LocalPrediction, Served, predict_local
from leptonai.compute.prediction.operations_step import OperatorTimes
from leptonai.core.errors import InputError
from leptonai.launch.rates import RateStore, job_key, open_rates, rates_of
from leptonai.launch.tally import Tally

TimeJob = Callable[[Plan], OperatorTimes | None]
FEWEST_STEPS = 20
"""Timed steps of a run that teach anything: fewer are mostly warming up."""


def with_forecast(
    plan: Plan, scouted: Mapping[str, Any], cluster: Cluster, home: Path, *, time_job: TimeJob | None = None
) -> Plan:
    """The plan with a forecast, where this machine's rates are known and the kind of run can be predicted.

    Args:
        time_job: times the operations of the plan's PyTorch job; None: what was timed before is used.
    """
    if any(place.device_kind != "cpu" for place in plan.placements) or not _is_here(cluster):
        return plan
    if scouted.get("private") is not None or not plan.workload.operations:
        return plan
    with open_rates(home) as store:
        measured = rates_of(cluster, store, scouted["framework"])
        correction = correction_of(store, scouted["framework"])
        if measured is None:
            return plan
        timed = time_job(plan) if time_job is not None and scouted["framework"] == "pytorch" else None
        if timed is not None:
            store.keep_timed(job_key(plan), timed)
        else:
            timed = store.timed(job_key(plan))
    made = predict(plan, measured, correction, timed)
    return plan if made is None else replace(plan, forecast=made)


def predict(
    plan: Plan, measured: Measured, correction: Correction, timed: OperatorTimes | None = None
) -> Forecast | None:
    """One step of this plan; None where its consistency, or its precision on this machine, cannot be predicted."""
    consistency = None if plan.servers is None else served_word(plan.servers.consistency)
    if plan.servers is not None and consistency is None:
        return None
    try:
        found = predict_local(
            plan.workload,
            measured,
            num_workers=plan.num_workers,
            threads=plan.tuning.threads,
            consistency=consistency,
            num_servers=plan.servers.num_servers if plan.servers is not None else 1,
            optimizer_states=plan.workload.optimizer_states,
            precision=plan.tuning.precision,
            correction=correction,
            timed=timed,
        )
    except InputError:  # a rate that was not measured, such as this precision's
        return None
    return to_forecast(found, rates="probed on this machine")


def served_word(consistency: str) -> Served | None:
    """The kind of consistency among those that can be predicted; None: another one.

    >>> served_word("ssp(2)"), served_word("diloco(3)")
    ('ssp', None)
    """
    word = consistency.partition("(")[0].strip()
    return next((known for known in get_args(Served) if known == word), None)


def to_forecast(found: LocalPrediction, *, rates: str) -> Forecast:
    """A prediction as a plan keeps it."""
    return Forecast(
        step_seconds=found.step_seconds,
        low_seconds=found.low_seconds,
        high_seconds=found.high_seconds,
        phases=tuple(PhaseForecast(name=name, seconds=seconds) for name, seconds in found.phases.items()),
        memory_bytes=found.memory_bytes,
        rates=rates,
        assumptions=found.assumptions,
    )


def correction_of(store: RateStore, framework: str) -> Correction:
    """What runs taught; what cannot be read counts as nothing."""
    kept = store.correction(framework)
    try:
        return NO_CORRECTION if kept is None else Correction.from_json(kept)
    except InputError:
        return NO_CORRECTION


def compare(plan: Plan, tally: Tally) -> tuple[PhaseCheck, ...]:
    """The forecast held against a run; empty where either is missing."""
    if plan.forecast is None or tally.step_seconds is None:
        return ()
    return check(plan.forecast, tally.phase_seconds, tally.step_seconds)


def learn_from(plan: Plan, tally: Tally, *, framework: str, store: RateStore) -> Correction | None:
    """Keep what a run taught; None: nothing, as it had no forecast or too few steps."""
    if plan.forecast is None or tally.steps_timed < FEWEST_STEPS:
        return None
    after = learn(
        correction_of(store, framework),
        predicted_seconds=plan.forecast.groups(),
        measured_seconds=tally.phase_seconds,
    )
    store.keep_correction(framework, after.to_json())
    return after


def _is_here(cluster: Cluster) -> bool:
    return all(node.is_local for node in cluster.nodes)
