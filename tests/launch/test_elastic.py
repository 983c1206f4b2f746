"""A run outlives its workers: it goes on from the last complete step, and ends like a calm one."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import defaultdict
from collections.abc import Callable

import psutil
import pytest

from leptonai.compute.engines.local import LocalEngine
from leptonai.core.control import Resize, SwitchConsistency, send_order
from leptonai.core.errors import Fault, InputError
from leptonai.core.events import (
    AlarmRaised,
    EpochDone,
    Event,
    Resized,
    StepDone,
    WorkerFailed,
    WorkerJoined,
    WorkerLost,
    WorkerStarted,
)
from leptonai.launch import elastic_gang
from leptonai.launch.membership import SAME_STEP_LOSSES, Losses, furthest
from leptonai.launch.request import RunResult
from leptonai.training.elastic import Elastic
from tests.launch.conftest import Runner
from tests.launch.test_equality import assert_close, assert_equal

# Reports at every step, so that a test can act at a step; no spare, so that each loss costs a fork.
SLOW = "pause=0.01, speed=Speed(log_every_seconds=1e-6)"
NO_SPARE = "elastic=Elastic(spare=0)"


class Hand:
    """Does something to the run's workers when a step is reported, once for each step named."""

    def __init__(self, deeds: dict[int, Callable[[dict[int, int]], None]]) -> None:
        self._deeds = dict(deeds)
        self.pids: dict[int, int] = {}
        self.all_pids: list[int] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, WorkerStarted):
            self.pids[event.rank] = event.pid
            self.all_pids.append(event.pid)
        if isinstance(event, StepDone):
            for step in [step for step in self._deeds if event.step >= step]:
                self._deeds.pop(step)(self.pids)


@pytest.fixture(scope="module")
def calm(engine: LocalEngine, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """The same job on two workers without a loss."""
    return Runner(engine, tmp_path_factory.mktemp("calm"))(f"toy({SLOW})")


def send(rank: int, number: signal.Signals = signal.SIGKILL) -> Callable[[dict[int, int]], None]:
    return lambda pids: os.kill(pids[rank], number)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_is_replaced_and_the_weights_are_those_of_a_calm_run(
    run: Runner, calm: RunResult, rank: int
) -> None:
    hand = Hand({9: send(rank)})
    result = run(f"toy({SLOW}, {NO_SPARE})", run="hit", listener=hand)
    assert result.status == "done"
    assert_equal(calm, result)
    assert result.examples == calm.examples == 4 * 203
    assert [(event.rank, event.pid) for event in run.of(WorkerLost)] == [(rank, hand.all_pids[rank])]
    assert [event.rank for event in run.of(WorkerJoined)] == [rank]
    assert [event.step for event in run.of(EpochDone)] == [7, 14, 21, 28]
    assert not [pid for pid in hand.all_pids if psutil.pid_exists(pid)]


@pytest.mark.parametrize("rank", [0, 2])
def test_without_replacement_the_others_share_the_work(run: Runner, calm: RunResult, rank: int) -> None:
    result = run(
        f"toy({SLOW}, elastic=Elastic(replace=False))", run="hit", workers=3, listener=Hand({8: send(rank)})
    )
    assert_close(calm, result)
    assert result.examples == 4 * 203
    assert [event.num_workers for event in run.of(Resized)] == [2]


def test_a_stopped_worker_is_ended_and_replaced(run: Runner, calm: RunResult) -> None:
    result = run(f"toy({SLOW}, {NO_SPARE})", run="hit", listener=Hand({9: send(1, signal.SIGSTOP)}))
    assert_equal(calm, result)
    assert "stopped (SIGSTOP)" in run.of(WorkerLost)[0].reason
    told = [
        (event.alarm, event.subject, event.over) for event in run.of(AlarmRaised) if event.alarm == "hang"
    ]
    assert told == [("hang", "rank 1", False), ("hang", "rank 1", True)]
    assert result.run_dir is not None
    (stacks,) = (result.run_dir / "stacks").iterdir()
    assert "rank 1 is stopped (SIGSTOP)" in stacks.read_text()
    assert "--- rank 0" in stacks.read_text()


def test_every_example_is_used_once_an_epoch_however_many_workers_are_lost(run: Runner) -> None:
    log = run.home / "used"
    job = (
        f"toy({SLOW}, {NO_SPARE}, data=Data(train=Arrays(np.concatenate([inputs[:, :11], "
        "np.arange(203, dtype=np.float32)[:, None]], 1), labels), augment=(Note({log!r}),)))"
    ).replace("{log!r}", repr(str(log)))
    result = run(job, workers=2, listener=Hand({5: send(0), 12: send(1), 20: send(0)}))
    assert result.status == "done"
    assert len(run.of(WorkerLost)) == 3
    # A step that was cut short was done again by the same shares, so what was computed twice is equal.
    used: dict[int, set[tuple[int, ...]]] = defaultdict(set)
    for line in log.read_text().splitlines():
        step, *indices = map(int, line.split())
        used[step].add(tuple(indices))
    for epoch in range(4):
        seen = [index for step in range(7 * epoch, 7 * epoch + 7) for share in used[step] for index in share]
        assert sorted(seen) == list(range(203))


def test_eight_kills_in_one_run_change_nothing(run: Runner) -> None:
    job = f"toy({SLOW}, epochs=None, steps=90, elastic=Elastic(spare=0, max_losses=20))"
    calm = run(job, run="calm")
    deeds = {10 * turn: send(turn % 2) for turn in range(1, 9)}
    result = run(job, run="hit", listener=Hand(deeds))
    assert len(run.of(WorkerLost)) == 8
    assert_equal(calm, result)
    assert result.examples == calm.examples


def test_batch_statistics_of_an_unfinished_step_are_undone(run: Runner) -> None:
    job = f"toy({SLOW}, {NO_SPARE}, model=lambda: nn.Sequential(Net('', 0, 1, 0.01), nn.BatchNorm1d(3)))"
    calm = run(job, run="calm")
    assert_equal(calm, run(job, run="hit", listener=Hand({9: send(1)})))


def test_a_spare_takes_over(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic_gang, "SPARE_AFTER_SECONDS", 0.0)
    logs, hand = run.home / "hit" / "logs", Hand({})

    def hear(event: Event) -> None:
        hand(event)
        if isinstance(event, StepDone) and (logs / "spare-0.log").exists() and not run.of(WorkerLost):
            with contextlib.suppress(ProcessLookupError):
                os.kill(hand.pids[1], signal.SIGKILL)

    result = run(f"toy({SLOW}, epochs=8)", run="hit", listener=hear)
    assert [event.rank for event in run.of(WorkerJoined)] == [1]
    assert_equal(run(f"toy({SLOW}, epochs=8)", run="calm"), result)


@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1)])
def test_a_run_is_resized_by_order(run: Runner, first: int, then: int) -> None:
    job = f"toy({SLOW}, epochs=None, steps=150)"
    calm = run(job, run="calm", workers=first)
    order = {20: lambda pids: said.append(send_order(run.home / "hit", Resize(num_workers=then)))}
    said: list[str] = []
    result = run(job, run="hit", workers=first, listener=Hand(order))
    assert said == ["taken"]
    assert [event.num_workers for event in run.of(Resized)] == [then]
    assert_close(calm, result)
    assert result.examples == calm.examples


def test_orders_that_this_run_cannot_follow_are_answered(run: Runner) -> None:
    said: list[str] = []

    def ask(pids: dict[int, int]) -> None:
        for order in (Resize(num_workers=65), SwitchConsistency(mode="ssp(3)")):
            with pytest.raises(InputError) as caught:
                send_order(run.home / "run", order)
            said.append(str(caught.value))

    run(f"toy({SLOW})", listener=Hand({3: ask}))
    assert "expected 1 to" in said[0]
    assert "no parameter server" in said[1]


def test_the_words_of_a_worker_that_raises_still_end_the_run(run: Runner) -> None:
    with pytest.raises(Fault, match="ValueError: the toy broke"):
        run("toy('raise')")
    assert not run.of(WorkerLost)
    assert len(run.of(WorkerFailed)) == 1


def test_a_worker_that_always_dies_ends_the_run(run: Runner) -> None:
    with pytest.raises(Fault, match=r"was killed by SIGKILL; workers were lost 3 times in a row in step"):
        run(f"toy('kill', at=1, {NO_SPARE})")
    assert len(run.of(WorkerLost)) == SAME_STEP_LOSSES


def test_more_losses_than_the_job_bears_end_the_run(run: Runner) -> None:
    with pytest.raises(Fault, match="2 workers were lost, the job bears 1"):
        run(f"toy('kill', at=5, {NO_SPARE[:-1]}, max_losses=1))")


def test_fewer_workers_than_the_job_needs_end_the_run(run: Runner) -> None:
    with pytest.raises(Fault, match="1 workers are left, the job needs 2"):
        run("toy('kill', at=5, elastic=Elastic(replace=False, min_workers=2))")


def test_a_run_of_one_worker_ends_with_it(run: Runner) -> None:
    with pytest.raises(Fault, match=r"^worker 0 was killed by SIGKILL\n"):
        run(f"toy({SLOW})", workers=1, listener=Hand({3: send(0)}))


def test_without_elastic_the_first_loss_ends_the_run(run: Runner) -> None:
    with pytest.raises(Fault, match=r"^worker 1 was killed by SIGKILL\n"):
        run("toy('kill', elastic=None)")


def test_losses_without_a_step_between_them_are_told_from_bad_luck() -> None:
    losses = Losses()
    assert [losses.add(step, num_survivors=1, settings=Elastic()) for step in (4, 4, 6, 6)] == [None] * 4
    assert losses.add(6, num_survivors=1, settings=Elastic()) is not None


def test_the_furthest_gives_and_among_equals_the_first() -> None:
    assert furthest([(3, 2), None, (3, 2)]) == 0
    assert furthest([(3, 8), (4, 0), (4, 0)]) == 1
    assert furthest([(3, 1), (3, 1)]) is None
    assert furthest([None]) is None


@pytest.mark.parametrize("words", ["min_workers=0", "max_losses=-1", "spare=True"])
def test_settings_out_of_range_are_refused(words: str) -> None:
    name, _, value = words.partition("=")
    with pytest.raises(InputError, match=name):
        Elastic(**{name: True if value == "True" else int(value)})  # type: ignore[arg-type]


def test_settings_of_a_part_the_job_lacks_are_refused_by_name(run: Runner) -> None:
    with pytest.raises(InputError, match="the job has no parameter_server"):
        run(overrides=("parameter_server.consistency=ssp(3)",))
    with pytest.raises(InputError, match="the job has no elastic"):
        run("toy(elastic=None)", overrides=("elastic.spare=0",))
