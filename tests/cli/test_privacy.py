from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from leptonai.cli import app as module
from leptonai.cli.privacy import privacy_app
from leptonai.core.clock import SystemClock
from leptonai.core.workspace import Workspace
from leptonai.launch.registry import workspace_url
from leptonai.security.privacy.accounting.mechanisms import Charge, Gaussian
from leptonai.security.privacy.ledger.ledger import Dataset, Ledger, open_ledger
from tests.cli.conftest import Said

Lepton = Callable[..., Said]
DATA = Dataset("ab" * 32, "patients")
JOBS = Dataset("cd" * 32, "mnist")


@pytest.fixture
def lepton(lepton: Lepton, monkeypatch: pytest.MonkeyPatch) -> Lepton:
    """The commands with job files that all train on one data set."""
    build = module.build_app

    def with_privacy() -> typer.Typer:
        made = build()
        made.registered_groups = [group for group in made.registered_groups if group.name != "privacy"]
        made.add_typer(privacy_app(lambda path: JOBS), name="privacy")
        return made

    monkeypatch.setattr(module, "build_app", with_privacy)
    return lepton


def charge(stage: Path, *, name: str = "patients", tenant: str = "default", leased: int = 5) -> None:
    """Reserve ten Gaussian releases and lease some."""
    with Workspace.open(workspace_url(stage / "home")) as workspace:
        ledger: Ledger = open_ledger(workspace, stage / "home" / "ledger.key", SystemClock())
        charges = [Charge(mechanism=Gaussian(noise_multiplier=20.0), count=10)]
        request = f"{name}/{tenant}"
        dataset = Dataset(DATA.digest, name)
        ledger.reserve(request, dataset, tenant, ("all",), charges, what="training patients")
        ledger.lease(request, leased)


GRANT = ("privacy", "grant", "patients", "--epsilon", "3", "--delta", "1e-5")


def test_what_is_granted_spent_reserved_and_left_is_shown_within_80_columns(
    lepton: Lepton, stage: Path
) -> None:
    charge(stage)
    said = lepton(*GRANT)
    assert said.out == "granted epsilon 3 at delta 1e-05 to patients (abababababab)\n"
    assert (said.code, said.err) == (0, "")
    shown = lepton("privacy", "ledger").out
    assert all(len(line) <= 80 for line in shown.splitlines())
    head, *rows = [line.split() for line in shown.splitlines()]
    assert head == ["data", "set", "tenant", "block", "granted", "spent", "reserved", "left", "delta"]
    (together,) = [row for row in rows if row[1:3] == ["all", "all"]]
    granted, spent, reserved, left = map(float, together[3:7])
    assert granted == 3
    assert 0 < spent < spent + reserved < 3
    assert granted - spent - reserved == pytest.approx(left, abs=2e-3)
    assert together[-1] == "1e-5"
    assert "no limit" in shown


def test_json_tells_the_same(lepton: Lepton, stage: Path) -> None:
    charge(stage)
    assert json.loads(lepton(*GRANT, "--json").out)["epsilon"] == 3
    budgets = json.loads(lepton("privacy", "ledger", "patients", "--json").out)
    (together,) = [each for each in budgets if each["tenant"] == "all"]
    assert together["dataset"] == {"digest": DATA.digest, "name": "patients"}
    assert together["left"] == pytest.approx(3 - together["spent"] - together["reserved"])
    (alone,) = [each for each in budgets if each["tenant"] == "default"]
    assert alone["granted"] is None
    assert alone["left"] is None


def test_history_tells_every_grant_and_charge_in_order(lepton: Lepton, stage: Path) -> None:
    charge(stage)
    lepton(*GRANT)
    lepton("privacy", "grant", "default", "--epsilon", "8", "--delta", "1e-5")
    said = lepton("privacy", "history", "abababab")
    assert all(len(line) <= 80 for line in said.out.splitlines())
    kinds = [record["kind"] for record in json.loads(lepton("privacy", "history", "patients", "--json").out)]
    assert kinds == ["reserve", "lease", "grant", "grant"]
    for words in ("training patients: 10 steps", "up to 5 of 10", "epsilon 3 at delta", "grant default"):
        assert words in re.sub(r"\s+", " ", said.out)
    only = json.loads(lepton("privacy", "history", "default", "--json").out)
    assert [record["dataset"] for record in only] == ["default"]


def test_a_job_file_names_the_data_it_trains_on(lepton: Lepton) -> None:
    said = lepton("privacy", "grant", "job.py", "--epsilon", "1", "--delta", "1e-6", "--tenant", "research")
    assert said.out == "granted epsilon 1 at delta 1e-06 to mnist (cdcdcdcdcdcd)\n"
    (budget,) = json.loads(lepton("privacy", "ledger", "job.py", "--json").out)
    assert (budget["tenant"], budget["block"], budget["granted"]) == ("research", "all", 1)


def test_unknown_data_can_be_granted_by_its_digest(lepton: Lepton) -> None:
    words = ("privacy", "grant", "weather", "--epsilon", "1", "--delta", "1e-5")
    assert lepton(*words).code == 2
    assert lepton(*words, "--digest", "EF" * 32).code == 0
    assert lepton(*words).code == 0
    said = lepton("privacy", "ledger", "wether")
    assert said.code == 2
    assert "knows no data set 'wether'" in said.err
    assert "weather" in said.err.splitlines()[1]


def test_the_end_of_a_grant_is_a_date_or_now(lepton: Lepton, stage: Path) -> None:
    charge(stage)
    assert lepton(*GRANT, "--until", "2999-01-31").code == 0
    (budget,) = [each for each in json.loads(lepton("privacy", "ledger", "--json").out) if each["granted"]]
    assert budget["until_seconds"] == 32_474_736_000
    assert not budget["ended"]
    assert lepton(*GRANT, "--until", "now").code == 0
    assert "ended" in lepton("privacy", "ledger").out
    said = lepton(*GRANT, "--until", "someday")
    assert (said.code, "'someday' is no date" in said.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--epsilon", "nan"), 2, "expected epsilon to be a number > 0, found nan"),
        (("--epsilon", "-1"), 2, "expected epsilon to be a number > 0"),
        (("--epsilon", "inf"), 2, "expected epsilon to be a number > 0"),
        (("--delta", "1"), 2, "expected delta in (0, 1)"),
        (("--epsilon", "0.001"), 3, "is spent or reserved for all tenants together"),
        (("--tenant", ""), 2, "tenant: expected a name"),
        (("--workspace", "nonsense"), 2, "the workspace URL cannot be read"),
    ],
)
def test_what_cannot_be_granted_is_told_in_a_sentence(
    lepton: Lepton, stage: Path, words: tuple[str, ...], code: int, told: str
) -> None:
    charge(stage)
    said = lepton(*GRANT, *words)
    assert said.code == code
    assert told in said.err
    assert said.out == ""


def test_an_altered_ledger_is_told_with_the_row(lepton: Lepton, stage: Path) -> None:
    charge(stage)
    assert lepton("privacy", "ledger", "--verify").out == "every row bears its seal\n"
    assert json.loads(lepton("privacy", "ledger", "--verify", "--json").out) == {"problems": []}
    with Workspace.open(workspace_url(stage / "home")) as workspace, workspace.transaction() as connection:
        connection.exec_driver_sql(
            "UPDATE privacy_ledger SET body = replace(body, '5', '4') WHERE sequence = 2"
        )
    for words in (("privacy", "ledger", "--verify"), ("privacy", "ledger"), GRANT):
        said = lepton(*words)
        assert said.code == 4
        assert "the privacy ledger was altered: row 2 does not bear its seal" in said.err
    (stage / "home" / "ledger.key").chmod(0o644)
    assert "may be read by others" in lepton("privacy", "ledger").err


def test_an_empty_ledger_says_how_to_begin(lepton: Lepton) -> None:
    assert "lepton privacy grant" in lepton("privacy", "ledger").out
    said = lepton("privacy", "history", "mnist")
    assert (said.code, "no data set was charged or granted yet" in said.err) == (2, True)
