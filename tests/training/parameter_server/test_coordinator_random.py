"""A simulated cluster at random: whatever happens, the run ends and every example counts exactly once."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonai.training.job import Evaluate
from leptonai.training.parameter_server.consistency import (
    Asp,
    AsyncDiloco,
    Backup,
    Bsp,
    Consistency,
    Diloco,
    ElasticAveraging,
    LocalSgd,
    Ssp,
    StreamingDiloco,
)
from leptonai.training.parameter_server.coordinator import Coordinator
from leptonai.training.parameter_server.work import (
    Apply,
    Compute,
    Decision,
    Dropped,
    EpochEnded,
    EvaluateShare,
    Finish,
    Piece,
    SaveNow,
)

GRADIENT: list[Consistency] = [Bsp(), Ssp(staleness=0), Ssp(staleness=2), Asp(), Backup(workers=1)]
LOCAL: list[Consistency] = [
    LocalSgd(steps=3),
    Diloco(steps=4),
    StreamingDiloco(steps=4, fragments=2),
    AsyncDiloco(steps=3),
    ElasticAveraging(steps=2),
]


class World:
    """Workers and servers that do what they are told, in any order.

    Each to-do is a function-like tuple; :meth:`happen` lets one of them happen. Nothing here checks what the
    coordinator is for but :meth:`_take` and the counters.
    """

    def __init__(self, run: Coordinator, seed: int) -> None:
        self.run, self.choose = run, random.Random(seed)
        self.alive: set[int] = set()
        self.deals: dict[int, Compute] = {}  # in a worker's hands, by deal
        self.pushed: dict[tuple[int, int], Compute] = {}  # on the servers, by (worker, sequence)
        self.applying: dict[int, Apply] = {}
        self.shares: dict[int, EvaluateShare] = {}
        self.saving: SaveNow | None = None
        self.applied: Counter[tuple[int, int]] = Counter()
        self.epochs: list[int] = []
        self.saved: list[dict[str, Any]] = []
        self.settled: dict[int, Compute] = {}
        self.dropped: list[Piece] = []
        self.refused: set[tuple[int, int]] = set()
        self.evaluations = 0
        self.slow: dict[int, float] = {}
        self._sequence = itertools.count(1)
        self._new = itertools.count()

    def join(self) -> None:
        worker = next(self._new)
        self.alive.add(worker)
        self.slow[worker] = self.choose.choice([0.1, 0.5, 1.0])
        self.take(self.run.join(worker))

    def kill(self, worker: int) -> None:
        self.alive.discard(worker)
        self.deals = {n: deal for n, deal in self.deals.items() if deal.worker != worker}
        self.shares.pop(worker, None)
        if self.saving and self.saving.worker == worker:
            self.saving = None
        self.take(self.run.leave(worker))

    def take(self, decisions: Iterable[Decision]) -> None:
        for decision in decisions:
            self._take(decision)

    def _take(self, decision: Decision) -> None:
        match decision:
            case Compute():
                assert decision.worker in self.alive
                assert not any(deal.worker == decision.worker for deal in self.deals.values())
                assert not self.shares
                assert self.saving is None
                assert len({self.epoch(piece) for piece in decision.pieces}) == 1
                mode = self.run.mode
                if isinstance(mode, Ssp):
                    assert decision.clock - min(self.run.clocks.values()) <= mode.staleness
                self.deals[decision.deal] = decision
            case Apply():
                assert [member.worker for member in decision.members] == sorted(
                    {member.worker for member in decision.members}
                )
                deals = [self.pushed.pop((member.worker, member.sequence)) for member in decision.members]
                self.check_weights(decision, deals)
                self.applying[decision.group] = decision
                for deal in deals:
                    self.count(deal)
            case Dropped():
                self.dropped += decision.pieces
                for key in [key for key in self.pushed if key[0] == decision.worker]:
                    if self.pushed[key].pieces == decision.pieces or not decision.pieces:
                        del self.pushed[key]
            case EvaluateShare():
                assert not self.deals
                assert decision.worker not in self.shares
                self.shares[decision.worker] = decision
            case EpochEnded():
                self.epochs.append(decision.epoch)
            case SaveNow():
                assert not any((self.deals, self.pushed, self.applying, self.shares))
                self.saving = decision
            case Finish():
                assert not any(deal.worker == decision.worker for deal in self.deals.values())
                self.alive.discard(decision.worker)

    def check_weights(self, apply: Apply, deals: list[Compute]) -> None:
        sizes = [sum(piece.num_examples for piece in deal.pieces) for deal in deals]
        if isinstance(self.run.mode, Bsp | Backup):  # sum of gradient sums / step size * weight: the mean
            for deal, member in zip(deals, apply.members, strict=True):
                step_size = self.run._queue.step_size(deal.pieces[0].step)
                assert member.weight * sum(sizes) == pytest.approx(step_size)
        else:
            assert [member.weight for member in apply.members] == [size / sum(sizes) for size in sizes]
            assert sum(member.weight for member in apply.members) == pytest.approx(1.0)

    def epoch(self, piece: Piece) -> int:
        return piece.step // self.run._queue._steps_per_epoch

    def count(self, deal: Compute) -> None:
        for piece in deal.pieces:
            self.applied.update((piece.step, index) for index in range(piece.start, piece.stop))
        self.settled[deal.deal] = deal

    def happen(self, *, refuse: float = 0.0) -> bool:
        """Let one thing happen; False when there is nothing."""
        kinds = [bool(self.deals), bool(self.applying), bool(self.shares), self.saving is not None]
        if not any(kinds):
            return False
        kind = self.choose.choice([number for number, possible in enumerate(kinds) if possible])
        if kind == 0:
            deals = list(self.deals.values())
            self.report(self.choose.choices(deals, [self.slow[deal.worker] for deal in deals])[0], refuse)
        elif kind == 1:
            group = self.choose.choice(list(self.applying))
            del self.applying[group]
            self.take(self.run.group_applied(group))
            assert self.run.group_applied(group) == ()
        elif kind == 2:
            share = self.shares.pop(self.choose.choice(list(self.shares)))
            self.evaluations += 1
            self.take(self.run.evaluated(share.worker, {"share": 1.0 / share.count}))
        else:
            assert self.saving is not None
            extra = json.loads(json.dumps(self.saving.extra))
            self.saved.append({**extra, "applied": set(self.applied)})
            self.saving = None
            self.take(self.run.saved())
        return True

    def report(self, deal: Compute, refuse: float) -> None:
        del self.deals[deal.deal]
        spots = {(piece.step, index) for piece in deal.pieces for index in range(piece.start, piece.stop)}
        if spots and not spots & self.refused and self.choose.random() < refuse:
            self.refused |= spots
            self.take(self.run.refused(deal.worker, deal.deal))
        elif deal.grouped:
            sequence = next(self._sequence)
            self.pushed[deal.worker, sequence] = deal
            self.take(self.run.offered(deal.worker, deal.deal, sequence))
        else:
            self.count(deal)
            self.take(self.run.applied(deal.worker, deal.deal, staleness=0))
        if self.choose.random() < 0.1:  # said twice, or late: nothing happens
            assert self.run.offered(deal.worker, deal.deal, 0) == ()
            if not deal.grouped:
                assert self.run.applied(deal.worker, deal.deal, staleness=0) == ()


def expected(num_examples: int, batch: int, total_steps: int) -> set[tuple[int, int]]:
    per_epoch = -(-num_examples // batch)
    return {
        (step, index)
        for step in range(total_steps)
        for index in range(min(batch, num_examples - step % per_epoch * batch))
    }


def live_through(world: World, modes: list[Consistency], choose: random.Random) -> None:
    """Deaths, joins, retirements, refusals, switches and saves at random, until the run ends."""
    calm = choose.choice([0.2, 1.0, 3.0])
    for event in range(60_000):
        if world.run.finished:
            return
        action = choose.random() * calm if event < 3000 else 1.0
        alive = sorted(world.alive)
        if not alive or (action < 0.01 and len(alive) < 6):
            world.join()
        elif action < 0.02:
            world.kill(choose.choice(alive))
        elif action < 0.025 and len(alive) > 1:
            world.take(world.run.retire(choose.choice(alive)))
        elif action < 0.035:
            mode = choose.choice(modes)
            if not isinstance(mode, Backup) or mode.workers < len(world.run.workers):
                world.take(world.run.switch(mode))
        elif action < 0.045:
            world.take(world.run.order_save())
        elif not world.happen(refuse=0.02):
            world.join()  # all that is left waits for a worker
    raise AssertionError("the run does not end")


@settings(max_examples=120, deadline=None)
@given(
    num_examples=st.integers(1, 300), batch=st.integers(1, 24), total_steps=st.integers(1, 60),
    mode=st.sampled_from(GRADIENT + LOCAL), num_workers=st.integers(2, 5), seed=st.integers(0, 2**32),
)  # fmt: skip
def test_every_example_counts_once_and_the_run_ends(
    num_examples: int, batch: int, total_steps: int, mode: Consistency, num_workers: int, seed: int
) -> None:
    choose = random.Random(seed)
    modes = [mode] if mode in LOCAL else GRADIENT
    counts: dict[str, Any] = {
        "num_examples": num_examples, "global_batch_size": batch, "total_steps": total_steps,
        "num_evaluation_examples": 1, "evaluate": Evaluate(every_epochs=1, every_steps=choose.choice([0, 3])),
        "save_every_steps": choose.choice([0, 2]),
    }  # fmt: skip
    world = World(Coordinator(mode=mode, num_workers=num_workers, **counts), seed)
    for _ in range(num_workers):
        world.join()
    live_through(world, modes, choose)
    everything = expected(num_examples, batch, total_steps)
    assert world.applied == dict.fromkeys(everything, 1)
    per_epoch = -(-num_examples // batch)
    assert world.epochs == list(range(-(-total_steps // per_epoch)))
    assert world.run.progress.step == total_steps
    assert world.run.evaluation is not None
    assert world.run.evaluation.metrics == {"share": pytest.approx(1.0)}
    assert world.saved[-1]["pieces"]["steps_done"] == total_steps

    # From any checkpoint, with another number of workers and another setting: the rest, once.
    past = choose.choice(world.saved)
    again = World(Coordinator(mode=choose.choice(modes[:4]), state=past, **counts), seed + 1)
    again.join()
    live_through(again, modes[:4], choose)
    assert again.applied == dict.fromkeys(everything - past["applied"], 1)


@pytest.mark.parametrize("mode", GRADIENT + LOCAL, ids=lambda mode: type(mode).__name__)
def test_a_halt_settles_what_is_under_way_and_saves(mode: Consistency) -> None:
    for seed in range(20):
        run = Coordinator(num_examples=200, global_batch_size=16, total_steps=50, mode=mode, num_workers=3)
        world = World(run, seed)
        for _ in range(3):
            world.join()
        for _ in range(world.choose.randrange(60)):
            world.happen()
        world.take(run.order_halt())
        while world.happen():
            pass
        assert run.finished
        assert run.ending in ("stopped", "done")
        [saved] = world.saved
        assert saved["applied"] == set(world.applied)
        assert set(world.applied.values()) <= {1}
        assert saved["pieces"]["steps_done"] == run.progress.step


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_ssp_never_lets_the_fastest_run_further_than_its_bound(staleness: int) -> None:
    """35,000 reports a setting, workers at very different speeds; the spread reaches the bound, not beyond."""
    run = Coordinator(
        num_examples=4000, global_batch_size=8, total_steps=8750, mode=Ssp(staleness=staleness), num_workers=4
    )
    world = World(run, staleness)
    for _ in range(4):
        world.join()
    widest = 0
    while world.happen():
        clocks = {deal.worker: deal.clock for deal in world.deals.values()}
        slowest = min(run.clocks.values(), default=0)
        widest = max(widest, max(clocks.values(), default=0) - slowest)
        assert widest <= staleness
    assert run.finished
    assert widest == staleness


def test_a_dropped_piece_is_dealt_again_within_its_epoch() -> None:
    run = Coordinator(
        num_examples=300, global_batch_size=16, total_steps=57, mode=Backup(workers=1), num_workers=4
    )
    world = World(run, 3)
    for _ in range(4):
        world.join()
    while world.happen():
        pass
    assert len(world.dropped) > 20
    assert run.num_dropped >= len(world.dropped)
    assert world.applied == dict.fromkeys(expected(300, 16, 57), 1)


@pytest.mark.parametrize("mode", [Asp(), Ssp(staleness=3), Bsp()], ids=lambda mode: type(mode).__name__)
def test_a_report_costs_microseconds(mode: Consistency) -> None:
    """Pure logic must not hold workers up: far below a step's time even on a busy machine."""
    run = Coordinator(num_examples=100_000, global_batch_size=64, total_steps=1000, mode=mode, num_workers=8)
    ready: list[Decision] = [decision for worker in range(8) for decision in run.join(worker)]
    calls, began = 0, time.process_time()
    while not run.finished:
        decision = ready.pop(0)
        if isinstance(decision, Compute):
            ready += (
                run.offered(decision.worker, decision.deal, decision.deal)
                if decision.grouped
                else run.applied(decision.worker, decision.deal, staleness=0)
            )
        elif isinstance(decision, Apply):
            ready += run.group_applied(decision.group)
        elif isinstance(decision, SaveNow):
            ready += run.saved()
        calls += 1
    seconds = (time.process_time() - began) / calls
    print(f"{type(mode).__name__}: {seconds * 1e6:.1f} us a call")
    assert seconds < 500e-6
