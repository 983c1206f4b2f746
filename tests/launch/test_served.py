"""Runs with a parameter server: exact where they promise to be, whole where processes die."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray

from leptonai.core.control import Halt, Order, Resize, SwitchConsistency, send_order
from leptonai.core.errors import Fault, InputError
from leptonai.core.events import (
    ConsistencyChanged,
    EpochDone,
    Evaluated,
    Event,
    Notice,
    Resized,
    ServerRestarted,
    ServerStarted,
    Staleness,
    StepDone,
    WorkerJoined,
    WorkerLost,
    WorkerStarted,
)
from leptonai.launch.jobs import JobFile, load_job
from leptonai.launch.request import RunResult
from leptonai.training.data.order import Order as DataOrder
from leptonai.training.job import TrainJob
from leptonai.training.learner import shares
from leptonai.training.parameter_server import memory as memory_module
from leptonai.training.parameter_server.kernels import choose_kernels, initialise_states, num_states
from leptonai.training.parameter_server.layout import lay_out
from leptonai.training.parameter_server.served_loop import piece_batch, piece_seed
from leptonai.training.parameter_server.work import Piece
from leptonai.training.pytorch.flat import TorchFlatLearner
from leptonai.training.pytorch.passes import TorchOptions
from tests.launch.conftest import Runner
from tests.launch.test_equality import TOLERANCE, weights

MODES = (
    "bsp", "ssp(2)", "asp", "backup(1)", "local_sgd(3)", "diloco(3)", "async_diloco(3, momentum=0.5)",
    "streaming_diloco(4, fragments=2, overlap=1)", "elastic_averaging(2)",
)  # fmt: skip


def parameters(result: RunResult) -> dict[str, NDArray[np.float32]]:
    """What the servers held at the end."""
    return {name: each for name, each in weights(result).items() if name.startswith("server/parameters/")}


def assert_same_bits(left: RunResult, right: RunResult) -> None:
    ours, theirs = parameters(left), parameters(right)
    assert ours.keys() == theirs.keys()
    assert ours
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor, theirs[name], err_msg=name)


def assert_whole_epochs(run: Runner, *, epochs: int = 4) -> None:
    """Every epoch used each of the 203 examples once."""
    assert [(event.epoch, event.examples) for event in run.of(EpochDone)] == [
        (epoch + 1, 203) for epoch in range(epochs)
    ]


class Killer:
    """Kills processes of the run with SIGKILL as it goes on, from the launcher's own events.

    ``patient``: only when whoever replaced the last one has joined.
    """

    def __init__(
        self, times: Sequence[tuple[str, int]], *, every_steps: int = 2, patient: bool = False
    ) -> None:
        self.left, self.every, self.patient = list(times), every_steps, patient
        self.awaited = False
        self.pids: dict[tuple[str, int], int] = {}
        self.all_pids: list[int] = []
        self.last_step = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, WorkerStarted):
            self._note(("worker", event.rank), event.pid)
        elif isinstance(event, ServerStarted):
            self._note(("server", event.server), event.pid)
        elif isinstance(event, WorkerJoined):
            self.awaited = False
            self.last_step = max(self.last_step, event.step) if self.patient else self.last_step
        elif self._is_due(event):
            assert isinstance(event, StepDone)
            self.last_step, self.awaited = event.step, True
            with contextlib.suppress(ProcessLookupError):  # it is dead and not yet replaced
                os.kill(self.pids[self.left.pop(0)], signal.SIGKILL)

    def _is_due(self, event: Event) -> bool:
        if not (isinstance(event, StepDone) and self.left) or (self.patient and self.awaited):
            return False
        return event.step >= self.last_step + self.every

    def _note(self, who: tuple[str, int], pid: int) -> None:
        self.pids[who] = pid
        self.all_pids.append(pid)


FREQUENT = "speed=Speed(log_every_seconds=1e-6)"


def one_process(job: TrainJob, *, num_workers: int) -> dict[str, NDArray[np.float32]]:
    """The job in this process: every worker's share in order of rank, their gradients summed, one update."""
    torch.set_num_threads(1)  # as a worker computes: sums over more threads round otherwise
    learner = TorchFlatLearner(job, TorchOptions())
    layout = lay_out(learner.tensors, 1)
    flat, gradient = (np.zeros(layout.lengths[0], np.float32) for _ in range(2))
    for index, values in enumerate(learner.initial()):
        layout.scatter(index, values, [flat])
    count = range(len(learner.tensors))
    learner.bind([layout.view(i, [flat]) for i in count], [layout.view(i, [gradient]) for i in count])
    optimizer, data = job.optimizer, job.load_data()
    kernels = choose_kernels(optimizer)  # type: ignore[arg-type]
    states = np.zeros((num_states(optimizer), len(flat)), np.float32)  # type: ignore[arg-type]
    initialise_states(optimizer, states)  # type: ignore[arg-type]
    order = DataOrder(seed=job.seed, num_examples=len(data.train), global_batch_size=job.global_batch_size)
    total = job.total_steps(len(data.train))
    for step in range(total):
        size = len(order.batch(step).indices)
        summed = np.zeros_like(flat)
        for rank, share in enumerate(shares(size, num_workers)):
            piece = Piece(step=step, start=share.start, stop=share.stop)
            batch = piece_batch(job, data, order, piece)
            learner.gradient(batch, num_examples=size, seed=piece_seed(job.seed, piece))
            summed = gradient.copy() if rank == 0 else summed + gradient
        lr = optimizer.lr * job.schedule(step, total)  # type: ignore[union-attr]
        kernels.update(flat, summed, states, lr=lr, step=step + 1)
    return {
        f"server/parameters/{tensor.name}": layout.view(index, [flat]).reshape(tensor.shape)
        for index, tensor in enumerate(learner.tensors)
    }


@pytest.mark.parametrize("job", ["served()", "served(optimizer=adamw)"])
def test_bsp_equals_one_process_bit_for_bit(run: Runner, job: str) -> None:
    result = run(job, workers=3)
    expected = one_process(load_job(JobFile(path=run.home / "run.py").path), num_workers=3)
    found = parameters(result)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor, expected[name], err_msg=name)


def test_bsp_equals_all_reduce_within_rounding(run: Runner) -> None:
    served = run("served()", run="served")
    plain = run("toy()", run="plain")
    ours, theirs = weights(served), weights(plain)
    for name in [name for name in theirs if name.startswith("model/")]:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_uses_each_example_once_an_epoch_and_learns(run: Runner, mode: str) -> None:
    run(f"served({mode!r}, servers=2)", workers=3 if mode.startswith("backup") else 2)
    assert_whole_epochs(run)
    losses = [event.metrics["loss"] for event in run.of(Evaluated)]
    assert losses[-1] < 0.9
    last = run.of(Staleness)[-1]
    assert last.refused == 0


@pytest.mark.parametrize("codec", ["fp16", "int8", "topk(0.1)+int8", "powersgd(rank=2)", "onebit"])
def test_codecs_train_and_send_less(run: Runner, codec: str) -> None:
    run(f"served('asp', codec={codec!r}, epochs=8)")
    assert run.of(Evaluated)[-1].metrics["loss"] < 0.9
    assert_whole_epochs(run, epochs=8)


def test_killed_servers_alter_no_bit_under_bsp(run: Runner) -> None:
    calm = run(f"served(servers=2, {FREQUENT})", run="calm")
    killer = Killer([("server", 0), ("server", 1), ("server", 0)])
    rough = run(f"served(servers=2, {FREQUENT})", run="rough", listener=killer)
    assert not killer.left
    assert [event.server for event in run.of(ServerRestarted)] == [0, 1, 0]
    assert_whole_epochs(run)
    assert_same_bits(calm, rough)
    assert not [pid for pid in killer.all_pids if psutil.pid_exists(pid)]


def test_killed_workers_alter_nothing_but_rounding_under_bsp(run: Runner) -> None:
    calm = run(f"served({FREQUENT})", run="calm")
    killer = Killer([("worker", 1), ("worker", 0)])
    rough = run(f"served({FREQUENT})", run="rough", listener=killer)
    for kind in (WorkerLost, WorkerJoined):  # a replacement may take longer to start than the next one
        assert sorted(event.rank for event in run.of(kind)) == [0, 1]
    assert_whole_epochs(run)
    ours, theirs = parameters(calm), parameters(rough)
    for name, tensor in ours.items():  # the step in which one died was cut anew over the others
        np.testing.assert_allclose(tensor, theirs[name], rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("mode", ["asp", "ssp(1)", "local_sgd(2)", "async_diloco(2)"])
def test_random_kills_lose_and_repeat_no_example(run: Runner, mode: str) -> None:
    rng = random.Random(mode)
    whom = [rng.choice([("server", 0), ("server", 1), ("worker", 0), ("worker", 1)]) for _ in range(6)]
    killer = Killer(whom, every_steps=4)
    run(f"served({mode!r}, servers=2, epochs=6, {FREQUENT})", listener=killer)
    assert_whole_epochs(run, epochs=6)


def test_without_replacement_the_others_share_the_work(run: Runner) -> None:
    killer = Killer([("worker", 1)])
    run(f"served('asp', elastic=Elastic(replace=False, spare=0), {FREQUENT})", listener=killer, workers=3)
    assert len(run.of(WorkerLost)) == 1
    assert not run.of(WorkerJoined)
    assert_whole_epochs(run)


def test_too_few_workers_end_the_run(run: Runner) -> None:
    killer = Killer([("worker", 1)])
    with pytest.raises(Fault, match="1 workers are left, at least 2 are needed"):
        run(
            f"served('asp', elastic=Elastic(replace=False, min_workers=2, spare=0), {FREQUENT})",
            listener=killer,
        )


def test_a_spare_steps_in(run: Runner) -> None:
    killer = Killer([("worker", 1), ("worker", 1)], every_steps=40, patient=True)
    run(f"served('asp', elastic=Elastic(spare=1), epochs=60, {FREQUENT})", listener=killer)
    assert len(run.of(WorkerJoined)) == 2
    assert any((run.home / "run" / "logs").glob("spare-*.log"))
    assert_whole_epochs(run, epochs=60)


def order_at(run: Runner, step: int, order: Order) -> Callable[[Event], None]:
    """A listener that gives an order once, when so many steps are done."""
    given: list[str] = []

    def hear(event: Event) -> None:
        if isinstance(event, StepDone) and event.step >= step and not given:
            given.append(send_order(run.home / "run", order))

    return hear


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1)])
def test_workers_come_and_go_by_order(run: Runner, before: int, after: int) -> None:
    run(
        f"served('asp', epochs=60, {FREQUENT})", workers=before,
        listener=order_at(run, 7, Resize(num_workers=after)),
    )  # fmt: skip
    assert [event.num_workers for event in run.of(Resized)] == [after]
    assert len(run.of(Staleness)[-1].clocks) == after
    assert_whole_epochs(run, epochs=60)


def test_more_workers_than_there_is_memory_for_are_refused(run: Runner) -> None:
    with pytest.raises(InputError, match="expected 1 to"):
        run(f"served({FREQUENT})", listener=order_at(run, 2, Resize(num_workers=999)))


def test_the_mode_is_switched_while_running(run: Runner) -> None:
    run(f"served(epochs=20, {FREQUENT})", listener=order_at(run, 9, SwitchConsistency(mode="ssp(3)")))
    assert [event.mode for event in run.of(ConsistencyChanged)] == ["ssp(3)"]
    assert_whole_epochs(run, epochs=20)


def test_a_switch_that_moves_the_optimiser_is_refused(run: Runner) -> None:
    with pytest.raises(InputError, match="cannot switch from bsp to diloco"):
        run(f"served({FREQUENT})", listener=order_at(run, 2, SwitchConsistency(mode="diloco(4)")))


def test_a_halted_run_resumes_to_the_same_bits_on_another_number_of_servers(run: Runner) -> None:
    calm = run(f"served({FREQUENT})", run="calm")
    run(f"served({FREQUENT})", listener=order_at(run, 10, Halt()))
    assert run.of(StepDone)[-1].step < 28
    result = run(f"served(servers=3, {FREQUENT})", resume=True)
    assert result.step == 28
    assert_same_bits(calm, result)


def test_a_gradient_that_is_not_finite_is_refused_counted_and_computed_again(run: Runner) -> None:
    marker = run.home / "poisoned"
    run(f"served('asp', model=lambda: Poisoned({str(marker)!r}), {FREQUENT})")
    assert run.of(Staleness)[-1].refused == 1
    assert_whole_epochs(run)


def test_over_tcp_nothing_is_other_than_through_memory(run: Runner) -> None:
    local = run("served(servers=2)", run="local")
    remote = run("served(servers=2, transport='tcp')", run="remote")
    assert_same_bits(local, remote)
    assert run.of(Staleness)[-1].bytes_sent > 2 * 28 * 400 * 4 / 2


def test_killed_processes_over_tcp_lose_and_repeat_nothing(run: Runner) -> None:
    killer = Killer([("server", 0), ("worker", 1), ("server", 1)], every_steps=4)
    result = run(f"served('asp', servers=2, transport='tcp', epochs=6, {FREQUENT})", listener=killer)
    assert not killer.left
    assert result.pushes_lost == 0
    assert_whole_epochs(run, epochs=6)


def test_too_little_memory_says_how_much_and_falls_back_only_where_allowed(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([0, 0, 1 << 40])  # at the first run's only look, and at the second's two
    monkeypatch.setattr(memory_module, "_available_bytes", lambda: next(free))
    with pytest.raises(Fault, match=r"a shard needs .* KiB of shared memory"):
        run("served()", run="refused")
    run("served(tcp_fallback=True)")
    assert any("workers go over TCP" in event.message for event in run.of(Notice))
    assert_whole_epochs(run)


def test_a_keras_model_trains_in_every_family(run: Runner) -> None:
    pytest.importorskip("tensorflow")
    for mode in ("asp", "diloco(3, momentum=0.5)"):
        run(f"served_keras({mode!r})", run=mode.partition("(")[0])
        assert_whole_epochs(run)
        assert run.of(Evaluated)[-1].metrics["loss"] < 1.0


def test_hogwild_trains(run: Runner) -> None:
    run("served('asp', hogwild=True, durability='none', optimizer=SGD(lr=0.3), epochs=8)")
    assert run.of(Evaluated)[-1].metrics["loss"] < 0.6
    assert_whole_epochs(run, epochs=8)


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ("served('ssp(-1)')", "staleness"),
        ("served('fast')", "unknown mode"),
        ("served('diloco(4)', codec='topk(0.1)')", "does not go with"),
        ("served(durability='replica')", "second machine"),
        ("served(optimizer=lambda ps: torch.optim.SGD(ps, lr=0.1))", "own values"),
        ("served('asp', hogwild=True, durability='none')", "plain SGD"),
        ("served('backup(2)')", "cannot spare 2"),
        ("served(model=lambda: nn.Identity())", "no trainable parameters"),
    ],
)
def test_bad_settings_are_said_before_anything_runs(run: Runner, job: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        run(job)
    assert not (Path(run.home) / "run" / "events.jsonl").exists() or not run.of(WorkerStarted)
