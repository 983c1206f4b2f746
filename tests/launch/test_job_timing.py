"""A job's operations timed by real workers at once, and what happens when one of them cannot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from leptonai.compute.plan import Plan
from leptonai.compute.prediction.operations_step import OperatorTimes
from leptonai.core.clock import SystemClock
from leptonai.core.errors import Fault, LeptonError
from leptonai.launch.job_timing import time_in_workers
from leptonai.launch.jobs import JobFile
from leptonai.launch.request import TrainRequest
from leptonai.launch.run import make_plan
from tests.launch.conftest import Runner, cluster

DYING = "toy(model=lambda: os._exit(3))"
BROKEN = "toy(model=lambda: Net().missing)"


def request_of(run: Runner, name: str, expression: str, num_workers: int) -> TrainRequest:
    return TrainRequest(
        job=JobFile(path=run.write_job(name, expression)), cluster=cluster(num_workers), cluster_text="",
        home=run.home / "home", autotune=False,
    )  # fmt: skip


def timed_by(run: Runner, expression: str, plan: Plan, num_workers: int) -> OperatorTimes | None:
    request = request_of(run, "timed", expression, num_workers)
    scratch = run.home / "scratch"
    scratch.mkdir()
    return time_in_workers(run.engine, request, plan, scratch, SystemClock())


def plan_of(run: Runner, num_workers: int) -> Plan:
    return make_plan(request_of(run, "planned", "toy()", num_workers), engine=run.engine)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_as_many_workers_as_the_plan_has_time_at_once(num_workers: int, run: Runner) -> None:
    timed = timed_by(run, "toy()", plan_of(run, num_workers), num_workers)
    assert timed is not None
    assert timed.num_busy == num_workers
    assert timed.batch == 30 // num_workers
    assert min(timed.forward_seconds, timed.backward_seconds) > 0
    assert timed.variation >= 0


def test_compiled_passes_are_not_timed_apart(run: Runner) -> None:
    plan = plan_of(run, 1)
    plan = replace(plan, tuning=replace(plan.tuning, compile=True))
    assert (
        time_in_workers(run.engine, request_of(run, "job", "toy()", 1), plan, Path(), SystemClock()) is None
    )


@pytest.mark.parametrize(
    ("job", "error", "words"), [(DYING, Fault, "a worker died"), (BROKEN, LeptonError, "missing")]
)
def test_a_worker_that_cannot_time_ends_it(job: str, error: type[Exception], words: str, run: Runner) -> None:
    plan = plan_of(run, 2)
    with pytest.raises(error, match=words):
        timed_by(run, job, plan, 2)
    assert run.engine.poll(0.0) == []
