"""Private runs from end to end: what is charged, what is told, what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from leptonai.core.clock import SystemClock
from leptonai.core.errors import InputError, LeptonError, Refused
from leptonai.core.events import EpochDone, Evaluated, PrivacySpent, StepDone, WorkerLost
from leptonai.core.fault_text import parse_faults
from leptonai.core.workspace import Workspace
from leptonai.launch.registry import workspace_url
from leptonai.security.privacy.accounting.accountant import epsilon
from leptonai.security.privacy.accounting.mechanisms import Charge, SampledGaussian
from leptonai.security.privacy.ledger.ledger import Ledger, open_ledger
from leptonai.training.checkpoint import CheckpointStore
from tests.launch.conftest import Runner


def ledger_of(run: Runner) -> Ledger:
    home = run.home / "home"
    workspace = Workspace.open(workspace_url(home))
    return open_ledger(workspace, home / "ledger.key", SystemClock())


def spent(run: Runner, name: str = "toy", delta: float = 1e-4) -> float:
    ledger = ledger_of(run)
    return ledger.spent(ledger.find(name), "default", "all", delta)


def test_a_private_run_learns_is_charged_and_says_what_it_cost(run: Runner) -> None:
    result = run("private()")
    assert result.status == "done"
    assert result.metrics["accuracy"] > 0.55  # guessing: 0.4
    assert result.privacy is not None
    found, delta = result.privacy
    assert 3.9 < found <= 4.0
    assert delta == 1e-4
    assert spent(run) == pytest.approx(found)
    told = run.of(PrivacySpent)
    assert [event.epsilon for event in told] == sorted(event.epsilon for event in told)
    assert told[-1].epsilon == pytest.approx(found)
    assert json.loads((run.home / "run" / "result.json").read_text())["privacy"]["epsilon"] == found


def test_nothing_of_a_training_example_is_told_but_the_noisy_weights(run: Runner) -> None:
    run("private()")
    assert {event.loss for event in run.of(StepDone)} == {None}
    assert {event.examples // 30 * 30 - event.examples for event in run.of(StepDone)} == {0}
    assert all(event.metrics == {} for event in run.of(EpochDone))
    assert run.of(Evaluated)
    for path in CheckpointStore(run.home / "run" / "checkpoints", keep=9).list():
        extra = CheckpointStore(path.parent, keep=9).load(path).extra
        assert (extra["epoch_loss"], extra["epoch_counted"], extra["epoch_metrics"]) == (0.0, 0, {})


def test_two_runs_of_one_job_see_different_samples_and_noise(run: Runner) -> None:
    first = run("private()", run="first", workers=1)
    second = run("private()", run="second", workers=1)
    assert first.checkpoint_digest != second.checkpoint_digest
    assert spent(run) > 5.0  # both were charged, to one budget


def test_masks_and_augmentation_follow_a_secret_that_differs_in_each_launch(run: Runner) -> None:
    """Drawn by places in the sample under a seed that is known, they would tell who is in it."""
    for name in ("first", "second"):
        run(f"drawing({str(run.home / name)!r} + '.txt')", run=name)
    first, second = (
        [line.split() for line in (run.home / f"{name}.txt").read_text().splitlines()]
        for name in ("first", "second")
    )
    assert len(first) == len(second) == 7
    assert not {draw for draw, _ in first} & {draw for draw, _ in second}
    seeds = [{seed for _, seed in each[1:]} for each in (first, second)]  # of the step before
    assert len(seeds[0]) == 6
    assert not seeds[0] & seeds[1]


@pytest.mark.parametrize(
    "changes",
    [
        "clipping='adaptive'", "clipping='per_layer'", "unit='user', users=users, examples_per_user=2",
        "max_batch=60", "loss=None, step=step", "correlation='banded', bands=4, epsilon=20.0",
        "population=150, steps=20, epochs=None",
        "precision='exact'",
    ],
)  # fmt: skip
def test_each_way_to_be_private_keeps_its_promise(changes: str, run: Runner) -> None:
    result = run(f"private({changes})")
    assert result.status == "done"
    assert result.privacy is not None
    limit = 20.0 if "banded" in changes else 4.0
    assert 0.95 * limit < result.privacy[0] <= limit
    assert np.isfinite(result.metrics["loss"])


def test_steps_without_any_example_pay_like_others(run: Runner) -> None:
    result = run("private(global_batch_size=1, steps=40, epochs=None)", workers=2)
    assert result.step == 40
    assert result.privacy is not None
    assert 3.8 < result.privacy[0] <= 4.0


def test_a_killed_worker_is_replaced_and_nothing_is_charged_twice(run: Runner) -> None:
    faults = parse_faults("kill worker 0 at 9")
    result = run("private(elastic=Elastic(spare=1))", faults=faults)
    assert run.of(WorkerLost)
    assert result.privacy is not None
    assert 3.9 < result.privacy[0] <= 4.0
    assert spent(run) == pytest.approx(result.privacy[0])


REFUSED = [
    ("parameter_server=ParameterServer(consistency='asp')", Refused, "parameter server"),
    ("shuffle=False", Refused, "secret sample"),
    ("precision_of_job", Refused, "bfloat16"),
    ("clip_norm=1.0", InputError, "clip_norm"),
    ("delta=0.01", Refused, "not below 1/203"),
    ("global_batch_size=500", InputError, "larger than the data"),
    ("noise_multiplier=0.5", Refused, "costs epsilon"),
    ("population=300", Refused, "steps"),
    (
        "model=lambda: nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))",
        Refused,
        "GroupNorm",
    ),
    ("loss=None, step=lambda model, batch: step(model, batch) * len(batch[0])", Refused, "sums over"),
    (
        "loss=lambda outputs, labels: nn.functional.cross_entropy(outputs - outputs.mean(0), labels)",
        Refused,
        "loss",
    ),
]


@pytest.mark.parametrize(("changes", "kind", "words"), REFUSED)
def test_what_would_void_the_guarantee_is_refused_before_anything_starts(
    changes: str, kind: type[LeptonError], words: str, run: Runner
) -> None:
    job = f"private({changes})"
    if changes == "precision_of_job":
        job = "dataclasses.replace(private(), precision='bfloat16')"
    with pytest.raises(kind, match=words):
        run(job)
    assert not (run.home / "run").exists()


def test_features_spend_the_budget_of_what_they_were_computed_from(run: Runner) -> None:
    run("private(steps=5, epochs=None)", run="raw")
    run(
        "private(steps=5, epochs=None, name='features', "
        "data=Data(train=Arrays(inputs * 2, labels), origin=Arrays(inputs, labels)))",
        run="features",
    )
    ledger = ledger_of(run)
    assert ledger.find("features").digest == ledger.find("toy").digest


def test_a_job_that_would_overspend_is_refused_and_leaves_nothing(run: Runner) -> None:
    run("private(epsilon=2.0)", run="first")
    ledger = ledger_of(run)
    ledger.grant(ledger.find("toy"), "default", "all", epsilon=2.5, delta=1e-4)
    with pytest.raises(Refused, match="toy"):
        run("private(epsilon=2.0)", run="second")
    assert not (run.home / "second").exists()
    result = run("private(epsilon=0.3)", run="third")
    assert result.status == "done"
    assert spent(run) <= 2.5


def test_a_stopped_run_goes_on_and_pays_for_each_step_once(run: Runner) -> None:
    first = run("private(stop_when=StopWhen(metric='loss', value=99, below=True))")
    assert first.step == 7
    assert first.privacy is not None
    assert 0 < first.privacy[0] < 3.5
    assert spent(run) == pytest.approx(first.privacy[0])
    result = run("private()", resume=True)
    assert 26 <= result.step <= 28  # what was leased and not taken is gone
    assert result.privacy is not None
    assert 3.9 < result.privacy[0] <= 4.0
    assert spent(run) == pytest.approx(result.privacy[0])
    again = run("private()", resume=True)  # there is nothing left to do, and nothing more to pay
    assert again.privacy == result.privacy


def test_a_run_killed_in_the_middle_is_resumed_within_its_epsilon(run: Runner) -> None:
    """Steps after the last checkpoint are lost but were paid for, so the resumed run ends that much earlier."""
    job = run.write_job("run", "private(pause=0.05, epochs=6, checkpoints=Checkpoints(every_steps=5))")
    code = (
        "import sys, os, pathlib; sys.path.insert(0, os.getcwd());"
        "from tests.launch.conftest import *;"
        f"home = pathlib.Path({str(run.home)!r});"
        "entered = start_engine(); engine = entered.__enter__();"
        "runner = Runner(engine, home);"
        f"runner(pathlib.Path({str(job)!r}), run='run', listener=lambda event: "
        "event.kind == 'step_done' and event.step >= 13 and os.kill(os.getpid(), 9))"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=120, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    before = spent(run)
    assert before > 0
    copy = run.home / "copy"
    shutil.copytree(run.home / "run", copy, ignore=shutil.ignore_patterns("control*"))
    result = run(job, run="run", resume=True)
    assert result.status == "done"
    assert result.privacy is not None
    assert result.privacy[0] <= 4.0
    assert result.step < 42  # it could not afford all
    assert spent(run) == pytest.approx(result.privacy[0])
    # The same checkpoint again, from a copy: there is nothing left to pay with.
    with pytest.raises(Refused, match="released already"):
        run(job, run="copy", resume=True)


def test_a_run_that_the_ledger_does_not_know_is_not_resumed(run: Runner) -> None:
    run("private()", overrides=("steps=12",))
    shutil.rmtree(run.home / "home")
    with pytest.raises(Refused, match="never charged"):
        run("private()", resume=True, overrides=("steps=12",))


def test_the_plan_tells_the_price_before_anything_is_spent(run: Runner) -> None:
    result = run("private()")
    privacy = result.plan.privacy
    assert privacy is not None
    rate = 30 / 203
    assert privacy.sample_rate == pytest.approx(rate)
    charge = Charge(
        mechanism=SampledGaussian(noise_multiplier=privacy.noise_multiplier, sample_rate=rate), count=28
    )
    assert epsilon([charge], delta=1e-4) == pytest.approx(privacy.epsilon)


def test_no_secret_is_left_in_the_run_directory(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[str] = []
    from leptonai.launch import private_run

    real = private_run.secrets.token_hex

    def noted(size: int) -> str:
        keys.append(real(size))
        return keys[-1]

    monkeypatch.setattr(private_run.secrets, "token_hex", noted)
    run("private()", workers=1)
    secret = [key for key in keys if len(key) == 64][-1]  # the first made the ledger's own key
    for folder, _, files in os.walk(run.home):
        for file in files:
            content = (Path(folder) / file).read_bytes()
            assert secret.encode() not in content
            assert bytes.fromhex(secret) not in content
