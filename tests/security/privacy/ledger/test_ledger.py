from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonai.core.clock import FakeClock
from leptonai.core.errors import Fault, InputError, Refused
from leptonai.core.workspace import Workspace
from leptonai.security.privacy.accounting.mechanisms import Charge, Gaussian, SampledGaussian
from leptonai.security.privacy.ledger.composing import Accounting
from leptonai.security.privacy.ledger.ledger import Dataset, Ledger
from tests.security.privacy.ledger.cases import (
    DATA,
    DELTA,
    KEY,
    NOW,
    OTHER,
    ledger_on,
    plainly,
    reserve,
    steps,
)


def test_a_job_that_would_overspend_is_refused_and_told_what_is_left(workspace: Workspace) -> None:
    ledger = ledger_on(workspace)
    ledger.grant(DATA, "all", "all", epsilon=3, delta=DELTA)
    reserve(ledger, "a", 16)
    with pytest.raises(Refused, match=r"patients: a run would bring epsilon to 4 .* 3 is granted .* 1 left"):
        reserve(ledger, "b", 16)
    reserve(ledger, "c", 8)
    (budget,) = [each for each in ledger.budgets() if each.tenant == "all"]
    assert (budget.granted, budget.spent, budget.reserved, budget.left) == (3, 0, 3, 0)


def test_the_real_accountant_composes_all_jobs_jointly(tmp_path: Path) -> None:
    run = [Charge(mechanism=SampledGaussian(noise_multiplier=1.0, sample_rate=0.01), count=500)]
    statistics = [Charge(mechanism=Gaussian(noise_multiplier=5.0))]
    with Workspace.open(f"sqlite:///{tmp_path / 'w.db'}") as workspace:
        ledger = Ledger(workspace, key=KEY, clock=FakeClock(start_seconds=NOW))
        apart = 0.0
        for number, charges in enumerate((run, run, statistics)):
            request = f"r{number}"
            ledger.reserve(request, DATA, "default", ("all",), charges, what="a job")
            ledger.lease(request, 500 if charges is run else 1)
            before = apart
            apart = ledger.spent(DATA, "all", "all", DELTA)
            assert apart > before
        alone = Ledger(workspace, key=KEY, clock=FakeClock(start_seconds=NOW))
        for number, charges in enumerate((run, statistics)):
            alone.reserve(f"o{number}", OTHER, "default", ("all",), charges, what="a job")
            alone.lease(f"o{number}", 500 if charges is run else 1)
        one_of_each = alone.spent(OTHER, "all", "all", DELTA)
        assert one_of_each < apart < 2 * one_of_each


def test_only_steps_never_leased_are_given_back(workspace: Workspace) -> None:
    ledger = ledger_on(workspace)
    reserve(ledger, "a", 8)
    ledger.lease("a", 3)
    assert ledger.lease("a", 2).leased == 3  # leases never shrink
    assert ledger.close("a", 1).used == 3  # whatever the caller says of what was leased
    assert ledger.spent(DATA, "default", "all", DELTA) == 3 / 8
    assert ledger.close("a", 1).used == 3
    assert ledger.recover("a").used == 3
    with pytest.raises(Refused, match="closed with 3 steps, not 8"):
        ledger.close("a", 8)
    with pytest.raises(Refused, match="may have been released"):
        ledger.abandon("a")
    with pytest.raises(Refused, match="is closed"):
        ledger.lease("a", 4)


def test_a_reservation_never_leased_can_be_given_back_whole(workspace: Workspace) -> None:
    ledger = ledger_on(workspace)
    ledger.grant(DATA, "all", "all", epsilon=1, delta=DELTA)
    reserve(ledger, "a", 8)
    assert ledger.abandon("a").used == ledger.abandon("a").used == 0
    reserve(ledger, "b", 8)
    with pytest.raises(Refused, match="is closed"):
        ledger.lease("a", 1)


def test_no_more_than_reserved_is_leased_or_used(workspace: Workspace) -> None:
    ledger = ledger_on(workspace)
    reserve(ledger, "a", 8)
    with pytest.raises(Refused, match="9 steps are more than the 8 reserved"):
        ledger.lease("a", 9)
    for used in (9, -1):
        with pytest.raises(InputError, match="expected 0 to 8 used steps"):
            ledger.close("a", used)
    assert ledger.close("a", 5).used == 5  # more than leased is spent all the same


def test_a_replayed_request_is_the_same_reservation(workspace: Workspace) -> None:
    ledger, again = ledger_on(workspace), ledger_on(workspace)
    ledger.grant(DATA, "all", "all", epsilon=1, delta=DELTA)
    for each in (ledger, again, ledger):
        reserve(each, "a", 8)
    reserve(again, "a", 8, Dataset(DATA.digest, "another name"))
    with pytest.raises(InputError, match="used before, for something else"):
        reserve(again, "a", 7)
    with pytest.raises(InputError, match="used before, for something else"):
        reserve(again, "a", 8, tenant="other")
    assert len(ledger.history(DATA)) == 3  # register, grant, reserve


def test_steps_leased_by_one_process_are_not_released_again_by_another(workspace: Workspace) -> None:
    first, second = ledger_on(workspace), ledger_on(workspace)
    reserve(first, "a", 8)
    first.lease("a", 4)
    reserve(second, "a", 8)
    with pytest.raises(Refused, match="another process has leased 4 steps"):
        second.lease("a", 1)


def test_what_goes_on_from_a_checkpoint_is_a_new_charge_each_time(workspace: Workspace) -> None:
    dead = ledger_on(workspace)
    dead.grant(DATA, "all", "all", epsilon=2, delta=DELTA)
    reserve(dead, "run/1", 8)
    dead.lease("run/1", 4)
    for number in (2, 3):
        resumed = ledger_on(workspace)
        assert resumed.recover_all("run/") == [4, 4, 4][: number - 1]
        reserve(resumed, f"run/{number}", 4)
        resumed.lease(f"run/{number}", 4)
    assert dead.spent(DATA, "all", "all", DELTA) == 12 / 8
    with pytest.raises(Refused):
        dead.lease("run/1", 5)  # it lives after all, but its reservation was closed


def test_a_renamed_copy_spends_the_same_budget(workspace: Workspace) -> None:
    ledger = ledger_on(workspace)
    ledger.grant(DATA, "all", "all", epsilon=1, delta=DELTA)
    reserve(ledger, "a", 8, Dataset(DATA.digest, "harmless"))
    with pytest.raises(Refused):
        reserve(ledger, "b", 1)
    assert ledger.find("harmless").digest == ledger.find("patients").digest == ledger.find("ABABAB").digest


def test_without_a_grant_charges_are_recorded_and_not_limited(workspace: Workspace) -> None:
    ledger = ledger_on(workspace)
    reserve(ledger, "a", 800)
    assert not ledger.reservation("a").limited
    ledger.grant_default(epsilon=100.5, delta=DELTA)
    reserve(ledger, "b", 4)
    assert ledger.reservation("b").limited
    with pytest.raises(Refused):
        reserve(ledger, "c", 1)


def test_the_default_holds_until_there_is_a_grant_of_its_own(workspace: Workspace) -> None:
    ledger = ledger_on(workspace)
    ledger.grant_default(epsilon=1, delta=DELTA)
    with pytest.raises(Refused):
        reserve(ledger, "a", 9)
    ledger.grant(DATA, "all", "all", epsilon=2, delta=DELTA)
    reserve(ledger, "a", 9)
    with pytest.raises(Refused):
        reserve(ledger, "b", 9, OTHER)
    told = {(each.dataset.name, each.by_default) for each in ledger.budgets() if each.granted}
    assert told == {("patients", False)}


def test_tenants_have_budgets_of_their_own_and_one_together(workspace: Workspace) -> None:
    ledger = ledger_on(workspace)
    for tenant, epsilon in (("all", 2), ("a", 1)):
        ledger.grant(DATA, tenant, "all", epsilon=epsilon, delta=DELTA)
    reserve(ledger, "1", 8, tenant="a")
    with pytest.raises(Refused, match="for tenant 'a'"):
        reserve(ledger, "2", 1, tenant="a")
    reserve(ledger, "3", 8, tenant="b")
    with pytest.raises(Refused, match="for all tenants together"):
        reserve(ledger, "4", 1, tenant="c")


def test_blocks_are_apart_but_a_charge_to_all_touches_each(workspace: Workspace) -> None:
    ledger = ledger_on(workspace)
    ledger.grant(DATA, "all", "all", epsilon=2, delta=DELTA)
    ledger.grant(DATA, "all", "2026", epsilon=1, delta=DELTA)
    reserve(ledger, "1", 8, blocks=("2025",))
    reserve(ledger, "2", 4, blocks=("2026",))
    reserve(ledger, "3", 4, blocks=("all",))
    held = {(each.tenant, each.block): each.left for each in ledger.budgets()}
    assert held["all", "2026"] == 0
    assert held["all", "all"] == 2 - 1.5  # the worst off are those of 2025
    with pytest.raises(Refused, match="in block '2026'"):
        reserve(ledger, "4", 1)
    reserve(ledger, "5", 4, blocks=("2025",))
    with pytest.raises(Refused, match="for all tenants together and"):
        reserve(ledger, "6", 1, blocks=("2025", "new"))
    reserve(ledger, "7", 12, blocks=("new",))
    with pytest.raises(Refused):
        reserve(ledger, "8", 1, blocks=("new",))


def test_a_grant_is_not_lowered_below_what_is_spent_or_reserved(workspace: Workspace) -> None:
    ledger = ledger_on(workspace)
    ledger.grant(DATA, "all", "all", epsilon=2, delta=DELTA)
    reserve(ledger, "a", 8)
    with pytest.raises(Refused, match="epsilon 1 at delta 1e-05 is spent or reserved"):
        ledger.grant(DATA, "all", "all", epsilon=0.5, delta=DELTA)
    with pytest.raises(Refused, match="spent or reserved for tenant 'default'"):
        ledger.grant(DATA, "default", "all", epsilon=0.5, delta=DELTA)
    ledger.grant(DATA, "all", "all", epsilon=1, delta=DELTA)
    with pytest.raises(Refused):
        reserve(ledger, "b", 1)
    ledger.grant(DATA, "all", "all", epsilon=1.125, delta=DELTA)
    reserve(ledger, "b", 1)
    assert [record.kind for record in ledger.history(DATA)].count("grant") == 3


@pytest.mark.parametrize("epsilon", [math.nan, math.inf, -1.0, 0.0, True, "3"])
def test_an_epsilon_that_is_none_is_not_granted(tmp_path: Path, epsilon: float) -> None:
    with Workspace.open(f"sqlite:///{tmp_path / 'w.db'}") as workspace:
        ledger = ledger_on(workspace)
        with pytest.raises(InputError, match="expected epsilon"):
            ledger.grant(DATA, "all", "all", epsilon=epsilon, delta=DELTA)
        assert ledger.history() == []


@pytest.mark.parametrize("delta", [math.nan, 0.0, 1.0, -1e-5, math.inf])
def test_a_delta_that_is_none_is_not_granted(tmp_path: Path, delta: float) -> None:
    with Workspace.open(f"sqlite:///{tmp_path / 'w.db'}") as workspace:
        ledger = ledger_on(workspace)
        with pytest.raises(InputError, match="expected delta"):
            ledger.grant_default(epsilon=1, delta=delta)
        with pytest.raises(InputError, match="expected delta"):
            ledger.spent(DATA, "all", "all", delta)


@pytest.mark.parametrize("cost", [math.nan, -1.0, math.inf])
def test_what_accounting_cannot_tell_is_not_let_through(tmp_path: Path, cost: float) -> None:
    with Workspace.open(f"sqlite:///{tmp_path / 'w.db'}") as workspace:
        clock = FakeClock(start_seconds=NOW)
        ledger = Ledger(
            workspace, key=KEY, clock=clock, accounting=Accounting(lambda *_: cost, lambda *_: cost)
        )
        ledger.grant(DATA, "all", "all", epsilon=1, delta=DELTA)
        with pytest.raises((Fault, Refused)):
            reserve(ledger, "a")
        assert "reserve" not in [record.kind for record in ledger.history()]


@pytest.mark.parametrize("name", ["", " a", "a\n", "a" * 201, "cafe\u0301", "a\x1b[0m", 7])
def test_names_that_look_like_others_are_refused(tmp_path: Path, name: str) -> None:
    with Workspace.open(f"sqlite:///{tmp_path / 'w.db'}") as workspace:
        ledger = ledger_on(workspace)
        for more in ({"tenant": name}, {"blocks": (name,)}, {"what": name}):
            with pytest.raises(InputError):
                reserve(ledger, "a", 1, **more)
        with pytest.raises(InputError):
            reserve(ledger, name, 1)
        with pytest.raises(InputError):
            Dataset(DATA.digest, name)


def test_what_cannot_be_charged_is_refused(tmp_path: Path) -> None:
    with Workspace.open(f"sqlite:///{tmp_path / 'w.db'}") as workspace:
        ledger = ledger_on(workspace)
        for more in ({"tenant": "all"}, {"blocks": ()}, {"charges": []}, {"charges": steps(0)}):
            with pytest.raises(InputError):
                reserve(ledger, "a", **more)
        for digest in ("AB" * 32, "ab" * 31, "", "xy" * 32):
            with pytest.raises(InputError):
                Dataset(digest, "x")
        for ask in (ledger.abandon, ledger.recover, ledger.reservation):
            with pytest.raises(InputError, match="knows no request 'a'"):
                ask("a")


def test_an_unknown_data_set_is_told_with_near_names(tmp_path: Path) -> None:
    with Workspace.open(f"sqlite:///{tmp_path / 'w.db'}") as workspace:
        ledger = ledger_on(workspace)
        with pytest.raises(InputError, match="no data set was charged or granted yet"):
            ledger.find("patient")
        ledger.register(DATA)
        ledger.register(Dataset("abab" + "0" * 60, "weather"))
        ledger.register(OTHER)
        with pytest.raises(InputError, match="knows no data set 'patient'") as caught:
            ledger.find("patient")
        assert "patients" in str(caught.value)
        with pytest.raises(InputError, match="means 2 data sets"):
            ledger.find("weather")
        assert ledger.find("cdcdcd") == OTHER


def test_a_grant_that_has_ended_stays_ended_though_the_clock_is_moved_back(workspace: Workspace) -> None:
    clock = FakeClock(start_seconds=NOW)
    ledger = ledger_on(workspace, clock)
    ledger.grant(DATA, "all", "all", epsilon=9, delta=DELTA, until_seconds=NOW + 60)
    reserve(ledger, "a")
    clock.advance(61)
    with pytest.raises(Refused, match="ended on 2026-"):
        reserve(ledger, "b")
    earlier = ledger_on(workspace, FakeClock(start_seconds=NOW))
    with pytest.raises(Refused, match="ended on"):
        reserve(earlier, "b")
    reserve(earlier, "a")  # what was reserved in time stays so
    assert ledger.lease("a", 8).leased == 8
    (budget,) = [each for each in earlier.budgets() if each.granted]
    assert budget.ended


def test_a_clock_far_behind_the_ledger_is_refused(workspace: Workspace) -> None:
    ledger = ledger_on(workspace)
    reserve(ledger, "a")
    behind = ledger_on(workspace, FakeClock(start_seconds=NOW - 3700))
    with pytest.raises(Refused, match=r"1\.0 hours behind"):
        reserve(behind, "b")
    with pytest.raises(Refused, match=r"1\.0 hours behind"):
        behind.grant(DATA, "all", "all", epsilon=9, delta=DELTA)
    behind.close("a", 0)  # giving back harms nobody
    slightly = ledger_on(workspace, FakeClock(start_seconds=NOW - 3500))
    reserve(slightly, "b")
    times = [record.at_seconds for record in slightly.history()]
    assert times == sorted(times)
    with pytest.raises(Fault, match="the clock tells nan"):
        reserve(ledger_on(workspace, FakeClock(start_seconds=math.nan)), "c")


def test_each_charge_counts_as_often_as_steps_could_have_used_it(tmp_path: Path) -> None:
    charges = [*steps(8), *steps(1, 0.5), *steps(4, 0.25)]
    with Workspace.open(f"sqlite:///{tmp_path / 'w.db'}") as workspace:
        ledger = ledger_on(workspace)
        reserve(ledger, "a", charges=charges)
        assert ledger.spent(DATA, "all", "all", DELTA) == 0
        ledger.lease("a", 2)
        assert ledger.spent(DATA, "all", "all", DELTA) == 2 * 0.125 + 0.5 + 2 * 0.25
        ledger.lease("a", 8)
        assert ledger.spent(DATA, "all", "all", DELTA) == 1 + 0.5 + 1


Moves = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "lease", "close", "abandon", "recover"]),
        st.integers(0, 3),
        st.integers(0, 10),
    ),
    max_size=25,
)


@settings(max_examples=20, deadline=None)
@given(moves=Moves)
def test_whatever_is_done_spending_stays_within_the_grant_and_never_shrinks(
    moves: list[tuple[str, int, int]],
) -> None:
    with Workspace.open("sqlite://") as workspace:
        ledger = ledger_on(workspace)
        ledger.grant(DATA, "all", "all", epsilon=1.5, delta=DELTA)
        before, released = 0.0, dict.fromkeys(range(4), 0)
        for kind, number, count in moves:
            try:
                if kind == "reserve":
                    reserve(ledger, str(number), number + 2)
                elif kind == "lease":
                    released[number] = max(released[number], ledger.lease(str(number), count).leased)
                elif kind == "close":
                    ledger.close(str(number), count)
                else:
                    getattr(ledger, kind)(str(number))
            except (InputError, Refused):
                pass
            spent = ledger.spent(DATA, "all", "all", DELTA)
            assert before <= spent <= 1.5
            assert spent >= sum(released.values()) / 8
            before = spent
        again = ledger_on(workspace)
        assert again.budgets() == ledger.budgets()
        assert again.verify() == []


def test_the_tight_number_is_not_asked_for_where_the_loose_one_fits(tmp_path: Path) -> None:
    with Workspace.open(f"sqlite:///{tmp_path / 'w.db'}") as workspace:
        clock, asked = FakeClock(start_seconds=NOW), []

        def tight(charges: list[Charge], delta: float) -> float:
            asked.append(len(charges))
            return plainly(charges, delta)

        def loose(charges: list[Charge], delta: float) -> float:
            return 2 * plainly(charges, delta)

        accounting = Accounting(tight, loose)  # type: ignore[arg-type]
        ledger = Ledger(workspace, key=KEY, clock=clock, accounting=accounting)
        ledger.grant(DATA, "all", "all", epsilon=2, delta=DELTA)
        reserve(ledger, "a", 8)
        assert not asked
        reserve(ledger, "b", 8)
        assert asked
        with pytest.raises(Refused):
            reserve(ledger, "c", 1)


def test_equal_mechanisms_are_composed_as_one(tmp_path: Path) -> None:
    seen = []

    def note(charges: list[Charge], delta: float) -> float:
        seen.append([charge.count for charge in charges])
        return plainly(charges, delta)

    with Workspace.open(f"sqlite:///{tmp_path / 'w.db'}") as workspace:
        clock = FakeClock(start_seconds=NOW)
        ledger = Ledger(workspace, key=KEY, clock=clock, accounting=Accounting(note, note))  # type: ignore[arg-type]
        ledger.grant(DATA, "all", "all", epsilon=9, delta=DELTA)
        reserve(ledger, "a", 8)
        reserve(ledger, "b", 8)
    assert seen == [[8], [16]]  # and each set of charges once
