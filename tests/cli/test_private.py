from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Said

Lepton = Callable[..., Said]

QUERIES = """\
unit: visitor
rows_per_unit: 2
queries:
  - {name: visits, statistic: count}
  - {statistic: mean, column: minutes, bounds: [0, 60], by: city, keys: [Oslo, Rome]}
  - {statistic: quantile, column: minutes, bounds: [0, 60], at: [0.25, 0.5]}
  - {statistic: histogram, column: city}
"""


@pytest.fixture
def visits(stage: Path) -> Path:
    """600 visits by 300 visitors in Oslo, and one by a visitor of a city of their own."""
    rows = [f"v{number % 300},Oslo,{number % 60}\n" for number in range(600)]
    path = stage / "visits.csv"
    path.write_text("visitor,city,minutes\n" + "".join(rows) + "v999,Atlantis,59\n")
    (stage / "q.yaml").write_text(QUERIES)
    return path


def test_a_count_is_near_and_charged_and_shows_no_exact_number(lepton: Lepton, visits: Path) -> None:
    words = ("private", "stats", "visits.csv", "--count", "--unit", "visitor", "--epsilon", "0.5", "--json")
    found = [json.loads(lepton(*words).out) for _ in range(6)]
    values = [each["answers"][0]["value"] for each in found]
    assert all(abs(value - 301) < 60 for value in values)  # 30 scales of the noise: once in 10^13
    assert len(set(values)) > 1
    assert found[0]["epsilon"] == pytest.approx(0.5)
    assert found[0]["unit"] == "visitor"
    assert len({each["request_id"] for each in found}) == 6


def test_a_query_file_gives_a_table_of_eighty_columns(lepton: Lepton, visits: Path) -> None:
    said = lepton("private", "stats", "visits.csv", "-q", "q.yaml", "--epsilon", "20", "--delta", "1e-6")
    assert said.code == 0
    assert said.err == ""
    assert max(map(len, said.out.splitlines())) <= 80
    for words in (
        "visits",
        "Oslo",
        "quantile minutes 25 %",
        "rows",
        "hidden",
        "at delta 1e-06",
        "charged as",
    ):
        assert words in said.out
    assert "Atlantis" not in said.out
    assert "at most 2 rows and 1 group of each visitor" in said.out


def test_a_plan_needs_no_table_and_charges_nothing(lepton: Lepton, stage: Path) -> None:
    (stage / "q.yaml").write_text(QUERIES)
    said = lepton(
        "private", "stats", "absent.csv", "-q", "q.yaml", "--epsilon", "1", "--delta", "1e-6", "--plan"
    )
    assert said.code == 0
    assert "nothing was read or charged" in said.out
    assert not (stage / "home" / "ledger.key").exists()
    planned = lepton(
        "private",
        "stats",
        "absent.csv",
        "-q",
        "q.yaml",
        "--epsilon",
        "1",
        "--delta",
        "1e-6",
        "--plan",
        "--json",
    )
    threshold = json.loads(planned.out)["queries"][3]["threshold"]
    assert threshold > 50


def test_a_request_id_answers_once(lepton: Lepton, visits: Path) -> None:
    words = ("private", "stats", "visits.csv", "--count", "--epsilon", "1", "--request-id", "monday")
    assert lepton(*words).code == 0
    said = lepton(*words)
    assert said.code == 3
    assert said.out == ""
    assert "answers were given before" in said.err


def test_rare_keys_alone_give_no_answer(lepton: Lepton, visits: Path) -> None:
    visits.write_text("visitor,city,minutes\nv1,Atlantis,3\n")
    said = lepton(
        "private", "stats", "visits.csv", "--histogram", "city", "--epsilon", "1", "--delta", "1e-9"
    )
    assert said.code == 0
    assert "no key is common enough" in said.out
    assert "Atlantis" not in said.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing was asked"),
        (["--count"], "epsilon is missing"),
        (["--count", "--epsilon", "0"], "epsilon: expected"),
        (["--count", "--epsilon", "nan"], "epsilon: expected"),
        (["--count", "--epsilon", "inf"], "epsilon: expected"),
        (["--count", "--epsilon", "1", "--delta", "1"], "delta: expected"),
        (["--count", "--epsilon", "1", "--unit", "visitr"], "did you mean 'visitor'?"),
        (["--count", "--epsilon", "1", "--rows-per-unit", "2"], "every row is a unit"),
        (["--count", "--epsilon", "1", "--unit", "visitor", "--rows-per-unit", "0"], "rows-per-unit"),
        (["--count", "--epsilon", "1", "--bounds", "0:1"], "means nothing to a count"),
        (["--mean", "minutes", "--epsilon", "1"], "a mean needs bounds"),
        (["--mean", "minutes", "--bounds", "9:1", "--epsilon", "1"], "low < high"),
        (["--mean", "minutes", "--sum", "visitor", "--bounds", "0:1", "--epsilon", "1"], "several columns"),
        (
            ["--sum", "city", "--bounds", "0:1", "--epsilon", "1"],
            "visits.csv:2: column 'city' is not a number",
        ),
        (["--histogram", "city", "--epsilon", "1"], "need a delta above 0"),
        (["--count", "-q", "q.yaml", "--epsilon", "1"], "leave out one"),
        (["-q", "q.yaml", "--unit", "city", "--epsilon", "1"], "differs from the query file's"),
        (["--count", "--epsilon", "1", "--noise", "gaussian"], "needs a delta"),
    ],
)
def test_wrong_words_are_refused_and_nothing_is_charged(
    lepton: Lepton, visits: Path, words: list[str], message: str
) -> None:
    said = lepton("private", "stats", "visits.csv", *words)
    assert said.code == 2
    assert said.out == ""
    assert message in said.err
    assert not re.search(r"Oslo|Atlantis|v999", said.err)


def test_a_used_up_budget_refuses_with_its_own_exit_code(lepton: Lepton, visits: Path, stage: Path) -> None:
    from leptonai.core.clock import SystemClock
    from leptonai.core.workspace import Workspace
    from leptonai.launch.registry import workspace_url
    from leptonai.security.privacy.ledger.ledger import open_ledger

    (stage / "home").mkdir(exist_ok=True)
    with Workspace.open(workspace_url(stage / "home")) as workspace:
        ledger = open_ledger(workspace, stage / "home" / "ledger.key", SystemClock())
        ledger.grant_default(epsilon=1.5, delta=1e-6)
    words = ("private", "stats", "visits.csv", "--count", "--unit", "visitor", "--epsilon", "1")
    assert lepton(*words).code == 0
    said = lepton(*words)
    assert said.code == 3
    assert said.out == ""
    assert lepton(*words[:-1], "0.4").code == 0
