"""From a probe to a forecast, to a run, to a better forecast."""

from __future__ import annotations

from dataclasses import replace

import pytest

from leptonai.compute.measured import Measured, RateSample, TransferFit
from leptonai.core.errors import InputError
from leptonai.core.workspace import Workspace
from leptonai.launch.checking import check_run
from leptonai.launch.forecasting import served_word
from leptonai.launch.jobs import JobFile
from leptonai.launch.planning import worker_choices
from leptonai.launch.rates import RateStore, job_key, open_rates, this_machine
from leptonai.launch.request import TrainRequest
from leptonai.launch.run import make_plan
from leptonai.launch.rundir import RunDirectory
from tests.launch.conftest import Runner, cluster

RATE = 2e10


def machine(cores: int = 2) -> Measured:
    """Rates of a made-up machine: products at 20 GFLOP/s, memory at 5 GB/s."""
    kernels = [
        RateSample(
            kind="matmul",
            dims=(m, k, n),
            seconds=2e-6 + 2 * m * k * n / RATE,
            threads=1,
            num_busy=busy,
            backward=back,
        )
        for m in (16, 64, 256)
        for k in (16, 64, 256)
        for n in (16, 64, 256)
        for busy in (1, 2)
        for back in (False, True)
    ]
    kernels += [
        RateSample(kind=kind, dims=(size,), seconds=1e-6 + 8 * size / 5e9, threads=1, num_busy=busy)
        for kind in ("elementwise", "reduction", "copy", "update")
        for size in (1000, 100_000)
        for busy in (1, 2)
    ]
    transfers = [
        TransferFit(kind=kind, latency_seconds=1e-4, bandwidth_bytes_per_second=1e9, num_workers=2)
        for kind in ("all-reduce", "broadcast", "push-pull", "shared memory", "memory copy", "loopback")
    ]
    return Measured(
        at_seconds=0.0, cores=cores, kernels=tuple(kernels), transfers=tuple(transfers),
        memory_bytes_per_second=((1, 5e9), (2, 8e9)), call_seconds=(("pytorch", 5e-6),),
        start_seconds=(("pytorch", 1.0),), disk_read_bytes_per_second=1e9, disk_write_bytes_per_second=1e9,
    )  # fmt: skip


@pytest.fixture
def probed(run: Runner) -> Runner:
    """A home whose machine was probed."""
    with open_rates(run.home / "home") as store:
        store.keep_measured(machine())
    return run


LONG = "toy(epochs=None, steps=60, speed=Speed(log_every_seconds=1e-6))"


def test_rates_are_kept_for_this_machine_alone() -> None:
    with Workspace.open("sqlite://") as workspace:
        mine, other = RateStore(workspace), RateStore(workspace, "another machine")
        mine.keep_measured(machine())
        mine.keep_correction("pytorch", {"learnt": []})
        assert mine.measured("pytorch") == machine()
        assert other.measured("pytorch") is None
        assert other.correction("pytorch") is None
        mine.keep_measured(machine(cores=4))  # a new probe forgets what runs taught about the old one
        assert mine.correction("pytorch") is None
        assert mine.measured("pytorch") == machine(cores=4)
        assert mine.measured("tensorflow") is None
    assert "cores" in this_machine()


def test_without_a_probe_there_is_no_forecast(run: Runner) -> None:
    result = run(LONG)
    assert result.plan.forecast is None
    assert result.checks == ()
    with pytest.raises(InputError, match="no forecast"):
        check_run(RunDirectory(run.home / "run"), run.home / "home")


def test_a_run_is_held_against_its_forecast_and_teaches_the_next(probed: Runner) -> None:
    first = probed(LONG, run="first")
    made = first.plan.forecast
    assert made is not None
    assert sum(phase.seconds for phase in made.phases) == pytest.approx(made.step_seconds)
    assert first.predicted_step_seconds == made.step_seconds
    rows = {row.name: row for row in first.checks}
    assert {"compute", "exchange", "step"} <= rows.keys()
    assert rows["step"].measured_seconds == first.measured_step_seconds
    found = check_run(RunDirectory(probed.home / "first"), probed.home / "home")
    assert found.rows == first.checks
    assert found.steps_timed > 20
    assert found.to_json()["phases"][-1]["name"] == "step"
    second = probed(LONG, run="second").plan.forecast
    assert second is not None
    # Each part moved towards what was measured, and none by more than a run may move it.
    before, after = made.groups(), second.groups()
    for name in ("compute", "exchange"):
        measured = rows[name].measured_seconds
        assert measured is not None
        moved = after[name] / before[name]
        assert 1 / 1.26 < moved < 1.26
        assert (moved - 1) * (measured - before[name]) >= 0
    assert any("learnt from 1 run" in sentence for sentence in second.assumptions)


def test_short_runs_teach_nothing(probed: Runner) -> None:
    probed("toy(epochs=None, steps=8, speed=Speed(log_every_seconds=1e-6))")
    with open_rates(probed.home / "home") as store:
        assert store.correction("pytorch") is None


@pytest.mark.parametrize("job", ["served()", "served('ssp(2)')"])
def test_served_runs_are_forecast_too(job: str, probed: Runner) -> None:
    made = probed(job).plan.forecast
    assert made is not None
    assert "parameter exchange" in {phase.name for phase in made.phases}


@pytest.mark.parametrize("job", ["served('diloco(3)')", "private(steps=3, epochs=None)"])
def test_what_cannot_be_predicted_has_no_forecast(job: str, probed: Runner) -> None:
    assert probed(job).plan.forecast is None


def test_workers_of_this_machine_are_compared(probed: Runner) -> None:
    plan = probed(LONG).plan
    choices = worker_choices(plan, cluster(2), framework="pytorch", home=probed.home / "home", goal="time")
    assert {(each.num_workers, each.threads) for each in choices} == {(1, 1), (1, 2), (2, 1)}
    assert [each.forecast.step_seconds for each in choices] == sorted(
        each.forecast.step_seconds for each in choices
    )
    with pytest.raises(InputError, match="node here has no price"):
        worker_choices(plan, cluster(2), framework="pytorch", home=probed.home / "home", goal="price")
    with pytest.raises(InputError, match="power of this machine is not known"):
        worker_choices(plan, cluster(2), framework="pytorch", home=probed.home / "home", goal="energy")
    priced = replace(cluster(2), nodes=(replace(cluster(2).nodes[0], price_per_hour=1.8),))
    costs = worker_choices(plan, priced, framework="pytorch", home=probed.home / "home", goal="price")
    for each in costs:
        assert each.step_price == pytest.approx(each.forecast.step_seconds * 1.8 / 3600)
    assert costs[0].step_price == min(each.step_price or 0.0 for each in costs)
    with pytest.raises(InputError, match="not known"):
        worker_choices(plan, cluster(2), framework="pytorch", home=probed.home / "elsewhere", goal="time")


def test_words_of_consistency() -> None:
    assert [served_word(word) for word in ("bsp", "ssp(2)", "asp", "local_sgd(3)", "backup(1)")] == [
        "bsp", "ssp", "asp", None, None,
    ]  # fmt: skip


def test_a_plan_keeps_its_forecast(probed: Runner) -> None:
    result = probed("toy(steps=3, epochs=None)")
    assert result.plan.forecast is not None
    assert RunDirectory(result.run_dir).plan().forecast == result.plan.forecast


def test_a_plan_times_the_jobs_operations_and_the_run_uses_them(probed: Runner) -> None:
    path = probed.write_job("timed", LONG)
    request = TrainRequest(
        job=JobFile(path=path), cluster=cluster(2), cluster_text="", home=probed.home / "home", autotune=False
    )
    plan = make_plan(request, engine=probed.engine)
    assert plan.forecast is not None
    assert any("was timed alone" in sentence for sentence in plan.forecast.assumptions)
    with open_rates(probed.home / "home") as store:
        timed = store.timed(job_key(plan))
    assert timed is not None
    assert (timed.batch, timed.threads) == (15, 1)  # one worker of two, of a batch of 30
    assert timed.forward_calls > 3
    assert min(timed.forward_seconds, timed.backward_seconds) > 0
    choices = worker_choices(plan, cluster(2), framework="pytorch", home=probed.home / "home", goal="time")
    same = next(each for each in choices if (each.num_workers, each.threads) == (2, 1))
    assert same.forecast.step_seconds == pytest.approx(plan.forecast.step_seconds)
    ran = probed(path, run="ran").plan.forecast
    assert ran is not None
    assert ran.step_seconds == pytest.approx(plan.forecast.step_seconds)
