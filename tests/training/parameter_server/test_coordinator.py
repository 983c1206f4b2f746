"""What the coordinator decides, told step by step, for each consistency setting and order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from leptonai.core.errors import Fault, InputError
from leptonai.training.job import Evaluate, StopWhen
from leptonai.training.parameter_server.consistency import (
    Asp,
    AsyncDiloco,
    Backup,
    Bsp,
    Consistency,
    Diloco,
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
    Member,
    Piece,
    SaveNow,
)


def coordinator(mode: Consistency, num_workers: int, **values: Any) -> tuple[Coordinator, dict[int, Compute]]:
    """A run whose workers 0, 1, ... have joined, and their first deals."""
    sizes = {"num_examples": 64, "global_batch_size": 8, "total_steps": 16, **values}
    run = Coordinator(mode=mode, num_workers=num_workers, **sizes)
    decisions: list[Decision] = []
    for worker in range(num_workers):
        decisions += run.join(worker)
    return run, deals(decisions)


def deals(decisions: Iterable[Decision]) -> dict[int, Compute]:
    return {decision.worker: decision for decision in decisions if isinstance(decision, Compute)}


def offer(run: Coordinator, deal: Compute, sequence: int = 1) -> tuple[Decision, ...]:
    return run.offered(deal.worker, deal.deal, sequence)


def piece(step: int, start: int, stop: int) -> Piece:
    return Piece(step=step, start=start, stop=stop)


def test_bsp_waits_for_all_and_sums_in_rank_order_with_weight_one() -> None:
    run, first = coordinator(Bsp(), 3)
    assert [first[worker].pieces for worker in range(3)] == [
        (piece(0, 0, 3),), (piece(0, 3, 6),), (piece(0, 6, 8),)
    ]  # fmt: skip
    assert offer(run, first[2], 7) == ()
    assert offer(run, first[0], 5) == ()
    members = tuple(Member(worker=n, sequence=s, weight=1.0) for n, s in ((0, 5), (1, 6), (2, 7)))
    assert offer(run, first[1], 6) == (Apply(group=0, members=members, step=0),)
    assert run.progress.step == 0
    second = deals(run.group_applied(0))
    assert run.progress.step == 1
    assert [second[worker].pieces[0].step for worker in range(3)] == [1, 1, 1]
    assert run.clocks == {0: 1, 1: 1, 2: 1}


def test_bsp_deals_nothing_before_all_have_joined_unless_told_to_begin() -> None:
    run = Coordinator(num_examples=8, global_batch_size=8, total_steps=1, mode=Bsp(), num_workers=2)
    assert run.join(1) == ()
    assert deals(run.begin())[1].pieces == (piece(0, 0, 8),)


def test_a_death_in_a_bsp_round_voids_it_and_the_step_is_cut_anew() -> None:
    run, first = coordinator(Bsp(), 3)
    offer(run, first[0])
    decisions = run.leave(1)
    assert decisions == (
        Dropped(worker=0, pieces=first[0].pieces, late=False),
        Dropped(worker=2, pieces=first[2].pieces, late=False),
        Dropped(worker=1, pieces=first[1].pieces, late=False),
    )
    # Worker 2 is still computing; when it offers, its push is discarded and the step begins again.
    discarded, *rest = offer(run, first[2])
    assert discarded == Dropped(worker=2, pieces=(), late=False)
    assert [deal.pieces for deal in deals(rest).values()] == [(piece(0, 0, 4),), (piece(0, 4, 8),)]
    assert offer(run, first[0]) == ()
    assert offer(run, first[1]) == ()


def test_a_death_after_the_decision_to_apply_changes_nothing() -> None:
    run, first = coordinator(Bsp(), 2)
    offer(run, first[0])
    offer(run, first[1])
    assert run.leave(1) == ()
    assert deals(run.group_applied(0))[0].pieces == (piece(1, 0, 8),)
    assert run.progress.step == 1
    assert run.num_dropped == 0


def test_who_joins_a_bsp_run_is_in_the_next_round() -> None:
    run, first = coordinator(Bsp(), 1)
    assert run.join(1) == ()
    offer(run, first[0])
    assert sorted(deals(run.group_applied(0))) == [0, 1]


def test_bsp_gives_some_workers_nothing_where_examples_are_few() -> None:
    run, first = coordinator(Bsp(), 3, num_examples=2, total_steps=1)
    assert first[2].pieces == (piece(0, 2, 2),)
    for worker in range(2):
        offer(run, first[worker])
    [apply] = offer(run, first[2])
    assert isinstance(apply, Apply)
    assert [member.weight for member in apply.members] == [1.0, 1.0, 1.0]


def test_ssp_holds_the_fastest_at_the_bound_and_frees_it_when_the_slowest_goes_on() -> None:
    run, now = coordinator(Ssp(staleness=1), 2)
    slow = now[1]
    again = deals(run.applied(0, now[0].deal, staleness=0))[0]
    assert again.clock == 1
    assert run.applied(0, again.deal, staleness=0) == ()
    both = deals(run.applied(1, slow.deal, staleness=2))
    assert sorted(both) == [0, 1]
    assert both[0].clock == 2
    assert run.drain_staleness() == {0: 2, 2: 1}
    assert run.drain_staleness() == {}


def test_ssp_goes_on_when_the_slowest_dies_and_a_joiner_starts_at_the_slowest() -> None:
    run, now = coordinator(Ssp(staleness=0), 2)
    assert run.applied(0, now[0].deal, staleness=0) == ()
    dropped, deal = run.leave(1)
    assert isinstance(dropped, Dropped)
    assert isinstance(deal, Compute)
    assert deal.pieces == now[1].pieces
    assert deals(run.join(7))[7].clock == 1


def test_asp_sizes_pieces_by_the_workers_there_are() -> None:
    run, now = coordinator(Asp(), 4)
    assert [deal.pieces[0].num_examples for deal in now.values()] == [2, 2, 2, 2]
    for worker in (2, 3):
        run.retire(worker)
        assert Finish(worker=worker) in run.applied(worker, now[worker].deal, staleness=0)
    [deal] = run.applied(0, now[0].deal, staleness=0)
    assert isinstance(deal, Compute)
    assert deal.pieces[0].num_examples == 4


def test_backup_applies_the_first_and_deals_the_late_ones_piece_again() -> None:
    run, first = coordinator(Backup(workers=1), 4)
    offer(run, first[3], 9)
    offer(run, first[0], 9)
    late, apply = offer(run, first[2], 9)
    assert late == Dropped(worker=1, pieces=first[1].pieces, late=True)
    # Gradients are sums over 2 of 8 examples, divided by 8; the mean over the 6 that came needs 8/6.
    members = tuple(Member(worker=worker, sequence=9, weight=8 / 6) for worker in (0, 2, 3))
    assert apply == Apply(group=0, members=members, step=0)
    second = deals(run.group_applied(0))
    assert sorted(second) == [0, 2, 3]
    assert second[0].pieces == first[1].pieces
    discarded, joined = offer(run, first[1], 9)
    assert discarded == Dropped(worker=1, pieces=(), late=True)
    assert isinstance(joined, Compute)
    assert joined.worker == 1
    assert run.num_dropped == 1


def test_backup_spares_fewer_when_workers_are_lost() -> None:
    run, first = coordinator(Backup(workers=2), 3)
    run.leave(1)
    assert not run.leave(2)[1:]
    [apply] = offer(run, first[0])
    assert isinstance(apply, Apply)


@pytest.mark.parametrize("spare", [2, 3])
def test_backup_that_spares_all_is_refused(spare: int) -> None:
    with pytest.raises(InputError, match="cannot spare"):
        coordinator(Backup(workers=spare), 2)
    run, _ = coordinator(Asp(), 2)
    with pytest.raises(InputError, match="cannot spare"):
        run.switch(Backup(workers=spare))


def test_local_sgd_deals_each_worker_its_share_of_every_step_and_weighs_by_examples() -> None:
    run, first = coordinator(LocalSgd(steps=2), 3)
    assert first[0].pieces == (piece(0, 0, 3), piece(1, 0, 3))
    assert first[2].pieces == (piece(0, 6, 8), piece(1, 6, 8))
    offer(run, first[0])
    offer(run, first[1])
    [apply] = offer(run, first[2])
    assert isinstance(apply, Apply)
    assert [member.weight for member in apply.members] == [6 / 16, 6 / 16, 4 / 16]
    run.group_applied(apply.group)
    assert run.progress.step == 2


def test_a_death_in_diloco_leaves_the_others_movements_in_the_group() -> None:
    run, first = coordinator(Diloco(steps=2), 3)
    offer(run, first[0])
    offer(run, first[1])
    dropped, apply = run.leave(2)
    assert dropped == Dropped(worker=2, pieces=first[2].pieces, late=False)
    assert isinstance(apply, Apply)
    assert [member.worker for member in apply.members] == [0, 1]
    assert deals(run.group_applied(apply.group))[0].pieces[0].start == 6


def test_the_push_of_a_worker_that_died_before_the_decision_is_left_out() -> None:
    run, first = coordinator(Diloco(steps=1), 2)
    offer(run, first[1])
    assert run.leave(1) == (Dropped(worker=1, pieces=first[1].pieces, late=False),)
    [apply] = offer(run, first[0])
    assert isinstance(apply, Apply)
    assert apply.members == (Member(worker=0, sequence=1, weight=1.0),)


def test_streaming_diloco_trains_on_while_one_group_is_synchronised() -> None:
    run, first = coordinator(StreamingDiloco(steps=4, fragments=2), 2)
    assert len(first[0].pieces) == 2
    second = deals(offer(run, first[0], 1))[0]
    assert second.clock == 1
    assert offer(run, second, 2) == ()  # group 0 is not applied, so nobody begins on group 2
    apply, other = offer(run, first[1], 1)
    assert isinstance(apply, Apply)
    assert (apply.group, apply.fragment, apply.fragments) == (0, 0, 2)
    assert isinstance(other, Compute)
    assert (other.worker, other.clock) == (1, 1)
    third = deals(run.group_applied(0))
    assert third[0].clock == 2
    [apply] = [found for found in offer(run, other, 2) if isinstance(found, Apply)]
    assert (apply.group, apply.fragment) == (1, 1)


def test_async_diloco_waits_for_nobody() -> None:
    run, first = coordinator(AsyncDiloco(steps=3), 2)
    assert not first[0].grouped
    assert [found.num_examples for found in first[0].pieces] == [4, 4, 4]
    for _ in range(3):
        first.update(deals(run.applied(0, first[0].deal, staleness=0)))
    assert run.clocks == {0: 3, 1: 0}


def test_a_gradient_that_is_not_finite_is_tried_once_more_then_a_fault() -> None:
    run, now = coordinator(Asp(), 2)
    [again] = run.refused(0, now[0].deal)
    assert isinstance(again, Compute)
    assert again.pieces == now[0].pieces
    assert run.refused(0, now[0].deal) == ()
    assert run.num_refused == 1
    with pytest.raises(Fault, match="not finite twice"):
        run.refused(0, again.deal)


def test_a_refusal_voids_a_bsp_round() -> None:
    run, now = coordinator(Bsp(), 2)
    offer(run, now[0])
    dropped, *rest = run.refused(1, now[1].deal)
    assert dropped == Dropped(worker=0, pieces=now[0].pieces, late=False)
    assert [deal.pieces for deal in deals(rest).values()] == [now[0].pieces, now[1].pieces]


def test_losses_count_only_what_was_applied() -> None:
    run, now = coordinator(Backup(workers=1), 2)
    run.offered(0, now[0].deal, 1, loss_sum=3.0, examples=4)
    assert run.drain_loss() == (0.0, 0)
    run.group_applied(0)
    run.offered(1, now[1].deal, 1, loss_sum=100.0, examples=4)
    assert run.drain_loss() == (3.0, 4)
    assert run.drain_loss() == (0.0, 0)


def test_an_epochs_end_waits_for_all_then_evaluates_and_stops_by_rule() -> None:
    run, now = coordinator(
        Asp(), 2, num_examples=8, num_evaluation_examples=10,
        stop_when=StopWhen(metric="accuracy", value=0.9).reached,
    )  # fmt: skip
    assert run.applied(0, now[0].deal, staleness=0) == ()  # not the next epoch's pieces
    assert run.applied(1, now[1].deal, staleness=0) == (
        EpochEnded(epoch=0, step=1),
        EvaluateShare(worker=0, index=0, count=2, step=1),
        EvaluateShare(worker=1, index=1, count=2, step=1),
    )
    assert run.evaluated(0, {"accuracy": 4.0}) == ()
    assert run.evaluated(0, {"accuracy": 4.0}) == ()  # said twice
    # The other dies: its share goes to who is there.
    assert run.leave(1) == (EvaluateShare(worker=0, index=1, count=2, step=1),)
    [save] = run.evaluated(0, {"accuracy": 5.0})
    assert run.evaluation is not None
    assert run.evaluation.metrics == {"accuracy": 0.9}
    assert isinstance(save, SaveNow)
    assert run.saved() == (Finish(worker=0),)
    assert run.ending == "done"
    assert run.join(5) == (Finish(worker=5),)


def test_evaluations_follow_the_rules_of_the_training_loop() -> None:
    """Every 2 epochs of 2 steps and every 3 steps, from step 4; at the end in any case."""
    rule = Evaluate(every_epochs=2, every_steps=3, from_step=4)
    run, now = coordinator(
        Bsp(), 1, num_examples=16, total_steps=11, evaluate=rule, num_evaluation_examples=1
    )
    evaluated: list[int] = []
    ended: list[tuple[int, int]] = []
    queue: list[Decision] = list(now.values())
    while queue:
        decision = queue.pop(0)
        match decision:
            case Compute():
                queue += offer(run, decision)
            case Apply():
                queue += run.group_applied(decision.group)
            case EvaluateShare():
                evaluated.append(decision.step)
                queue += run.evaluated(0, {})
            case EpochEnded():
                ended.append((decision.epoch, decision.step))
            case SaveNow():
                queue += run.saved()
            case _:
                assert decision == Finish(worker=0)
    assert evaluated == [4, 6, 8, 9, 11]
    assert ended == [(0, 2), (1, 4), (2, 6), (3, 8), (4, 10), (5, 11)]


def test_a_save_waits_for_quiet_and_moves_on_when_the_saver_dies() -> None:
    run, now = coordinator(Asp(), 2)
    assert run.order_save() == ()
    assert run.applied(0, now[0].deal, staleness=0) == ()
    [save] = run.applied(1, now[1].deal, staleness=0)
    assert isinstance(save, SaveNow)
    assert save.worker == 0
    [again] = run.leave(0)
    assert again == SaveNow(worker=1, step=1, extra=save.extra)
    assert sorted(deals(run.saved())) == [1]
    assert run.saved() == ()


def test_saves_every_so_many_steps() -> None:
    run, now = coordinator(Bsp(), 1, save_every_steps=2)
    offer(run, now[0])
    second = deals(run.group_applied(0))[0]
    offer(run, second)
    [save] = run.group_applied(1)
    assert isinstance(save, SaveNow)
    assert save.step == 2


def test_a_switch_from_bsp_to_ssp_waits_for_the_round_and_loses_nothing() -> None:
    run, now = coordinator(Bsp(), 2)
    offer(run, now[0])
    assert run.switch(Ssp(staleness=2)) == ()
    assert isinstance(run.mode, Bsp)
    offer(run, now[1])
    after = deals(run.group_applied(0))
    assert run.mode == Ssp(staleness=2)  # type: ignore[comparison-overlap]
    assert [deal.mode for deal in after.values()] == ["ssp(staleness=2)"] * 2
    assert not after[0].grouped
    assert run.progress.step == 1


def test_a_switch_to_ssp_levels_the_clocks_for_all_have_waited_for_each_other() -> None:
    run, now = coordinator(Asp(), 2)
    for _ in range(4):
        now.update(deals(run.applied(0, now[0].deal, staleness=0)))
    assert run.switch(Ssp(staleness=0)) == ()
    run.applied(0, now[0].deal, staleness=0)
    assert sorted(deals(run.applied(1, now[1].deal, staleness=0))) == [0, 1]
    assert run.clocks == {0: 5, 1: 5}


@pytest.mark.parametrize(
    ("before", "after"),
    [(Bsp(), Diloco()), (Diloco(), Asp()), (Diloco(), LocalSgd(steps=3))],
)
def test_a_switch_across_families_is_refused(before: Consistency, after: Consistency) -> None:
    run, _ = coordinator(before, 2)
    with pytest.raises(InputError, match="cannot switch"):
        run.switch(after)


def test_a_local_mode_may_change_its_numbers() -> None:
    run, now = coordinator(LocalSgd(steps=1), 1)
    run.switch(LocalSgd(steps=4))
    offer(run, now[0])
    assert len(deals(run.group_applied(0))[0].pieces) == 4


def test_retiring_finishes_what_is_in_hand() -> None:
    run, now = coordinator(Diloco(steps=1), 2)
    assert run.retire(1) == ()
    offer(run, now[0])
    offer(run, now[1])
    decisions = run.group_applied(0)
    assert Finish(worker=1) in decisions
    assert sorted(deals(decisions)) == [0]
    assert run.workers == (0,)
    assert run.leave(1) == ()


def test_the_gate_opens_after_the_epochs_checkpoint() -> None:
    run, now = coordinator(Asp(), 1, num_examples=8, total_steps=2, gated=True)
    told, save = run.applied(0, now[0].deal, staleness=0)
    assert isinstance(told, EpochEnded)
    assert isinstance(save, SaveNow)
    assert run.saved() == ()
    assert run.at_gate
    assert deals(run.pass_gate())[0].pieces[0].step == 1
    assert not run.at_gate


def test_a_gate_may_end_the_run() -> None:
    run, now = coordinator(Asp(), 1, num_examples=8, total_steps=2, gated=True)
    run.applied(0, now[0].deal, staleness=0)
    run.saved()
    assert run.pass_gate(stop=True) == (Finish(worker=0),)
    assert run.ending == "stopped"


def test_a_halt_at_the_gate_and_before_all_have_joined_ends_the_run() -> None:
    run = Coordinator(num_examples=8, global_batch_size=8, total_steps=1, mode=Bsp(), num_workers=2)
    run.join(0)
    [save] = run.order_halt()
    assert save == SaveNow(worker=0, step=0, extra=save.extra)  # type: ignore[union-attr]
    assert run.saved() == (Finish(worker=0),)


def test_a_resume_goes_on_within_the_epoch_with_other_workers_and_mode() -> None:
    run, now = coordinator(Asp(), 4)
    run.order_save()
    for worker in (0, 2, 3):
        run.applied(worker, now[worker].deal, staleness=0)
    *_, save = run.leave(1)
    assert isinstance(save, SaveNow)
    again, first = coordinator(Bsp(), 2, state=save.extra)
    assert [deal.pieces for deal in first.values()] == [(piece(0, 2, 3),), (piece(0, 3, 4),)]
    assert first[0].deal > now[3].deal
    offer(again, first[0])
    [apply] = offer(again, first[1])
    assert isinstance(apply, Apply)
    assert [member.weight for member in apply.members] == [4.0, 4.0]  # the mean over 2 of 8 examples


def test_a_resume_at_an_epochs_end_does_not_tell_it_again() -> None:
    run, now = coordinator(Asp(), 1, num_examples=8, total_steps=2, save_every_steps=1)
    *_, save = run.applied(0, now[0].deal, staleness=0)
    assert isinstance(save, SaveNow)
    again = Coordinator(num_examples=8, global_batch_size=8, total_steps=2, mode=Asp(), state=save.extra)
    [deal] = again.join(0)
    assert isinstance(deal, Compute)
    assert deal.pieces == (piece(1, 0, 8),)
