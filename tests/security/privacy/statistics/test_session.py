"""The ledger is charged before anything is drawn, and says no before anything is read aloud."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from leptonai.core.clock import FakeClock
from leptonai.core.errors import InputError, Refused
from leptonai.core.workspace import Workspace
from leptonai.security.privacy.accounting.accountant import epsilon
from leptonai.security.privacy.accounting.mechanisms import Charge
from leptonai.security.privacy.ledger.ledger import Ledger
from leptonai.security.privacy.ledger.views import Reservation
from leptonai.security.privacy.statistics.query import Count, Query, Request, UnknownKeys
from leptonai.security.privacy.statistics.randomness import Randomness
from leptonai.security.privacy.statistics.session import Purse, Released, answer, dataset_of_table
from tests.security.privacy.statistics.tables import randomness

REQUEST = Request(
    queries=(
        Query(name="count", statistic=Count()),
        Query(name="cities", statistic=Count(), groups=UnknownKeys(column="city")),
    ),
    epsilon=1.0,
    delta=1e-6,
    unit="user",
)


def account(charges: Sequence[Charge], delta: float) -> float:
    return epsilon(charges, delta=delta)


@pytest.fixture
def workspace() -> Iterator[Workspace]:
    with Workspace.open("sqlite://") as opened:
        yield opened


@pytest.fixture
def ledger(workspace: Workspace) -> Ledger:
    return Ledger(workspace, key=bytes(32), clock=FakeClock(start_seconds=1.8e9))


@pytest.fixture
def people(tmp_path: Path) -> Path:
    path = tmp_path / "people.csv"
    path.write_text("user,city\n" + "".join(f"u{number},Oslo\n" for number in range(200)))
    return path


def ask(
    path: Path, ledger: Ledger, *, request_id: str = "sunday", make: Callable[[], Randomness] | None = None
) -> Released:
    purse = Purse(ledger=ledger, dataset=path.name, request_id=request_id)
    draw = make or (lambda: randomness(1))
    return answer(path, REQUEST, purse=purse, epsilon_of=account, randomness=draw)


def test_what_is_released_is_charged(people: Path, ledger: Ledger) -> None:
    released = ask(people, ledger)
    assert [each.group for each in released.answers] == [None, "Oslo"]
    assert released.spent <= 1
    assert not released.limited
    assert ledger.spent(dataset_of_table(people), "default", "all", 1e-6) == pytest.approx(
        released.spent, rel=0.02
    )
    standing = ledger.reservation(released.request_id)
    assert (standing.leased, standing.used) == (1, 1)


def test_a_budget_that_is_used_up_refuses_a_renamed_copy_as_well(people: Path, ledger: Ledger) -> None:
    ledger.grant(dataset_of_table(people), "default", "all", epsilon=1.5, delta=1e-6)
    assert ask(people, ledger).limited
    lines = people.read_text().splitlines()
    copy = people.with_name("other.csv")
    copy.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    with pytest.raises(Refused, match="is granted"):
        ask(copy, ledger, request_id="monday", make=_never)
    assert ledger.spent(dataset_of_table(people), "default", "all", 1e-6) <= 1.02


def _never() -> Randomness:
    raise AssertionError("nothing may be drawn")


def test_a_repeated_request_is_refused_and_not_charged_again(people: Path, ledger: Ledger) -> None:
    ask(people, ledger, request_id="monday")
    before = ledger.spent(dataset_of_table(people), "default", "all", 1e-6)
    with pytest.raises(Refused, match="answers were given before"):
        ask(people, ledger, request_id="monday", make=_never)
    assert ledger.spent(dataset_of_table(people), "default", "all", 1e-6) == before


class Interrupted(Ledger):
    """A ledger whose process is stopped between reservation and lease."""

    def lease(self, request_id: str, count: int) -> Reservation:
        raise KeyboardInterrupt


def test_a_request_that_was_reserved_but_never_released_may_go_on(
    people: Path, ledger: Ledger, workspace: Workspace
) -> None:
    broken = Interrupted(workspace, key=bytes(32), clock=FakeClock(start_seconds=1.8e9))
    with pytest.raises(KeyboardInterrupt):
        ask(people, broken, request_id="monday", make=_never)
    assert ask(people, ledger, request_id="monday").answers
    with pytest.raises(Refused):
        ask(people, ledger, request_id="monday")


def test_what_fails_while_noise_is_drawn_stays_charged(people: Path, ledger: Ledger) -> None:
    def broken() -> Randomness:
        raise RuntimeError("no entropy")

    with pytest.raises(RuntimeError):
        ask(people, ledger, request_id="monday", make=broken)
    assert ledger.spent(dataset_of_table(people), "default", "all", 1e-6) > 0.9
    with pytest.raises(Refused):
        ask(people, ledger, request_id="monday", make=_never)


def test_a_wrong_table_is_not_charged(people: Path, ledger: Ledger) -> None:
    people.write_text("user,city\nu1,Oslo\nu2\n")
    with pytest.raises(InputError, match=":3:"):
        ask(people, ledger, make=_never)
    assert ledger.history() == []
