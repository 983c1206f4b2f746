"""The statement survives a round trip, refuses what is not one, and its page runs nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonai.core.errors import InputError
from leptonai.security.privacy.accounting.mechanisms import (
    Charge,
    Gaussian,
    SampledGaussian,
    TruncatedSampledGaussian,
)
from leptonai.security.privacy.proof.statement import (
    Facts,
    Statement,
    read_statement,
    scope,
    statement,
    statement_from_json,
    statement_to_json,
    write_statement,
)
from leptonai.security.privacy.proof.statement_page import page

FACTS = Facts(
    run_id="mnist-3f2a", epsilon=2.9, delta=1e-5, accounting="pld", unit="example", examples_per_user=1,
    num_units=60_000, population_given=False, sample_rate=256 / 60_000, max_batch=None, steps_released=1000,
    steps_planned=1000, clip=1.0, clipping="flat", noise_multiplier=0.8, normaliser=256.0, precision="float",
    correlation="independent", bands=16, dataset_digest="ab" * 32, ledger_id="9c1b", tenant="default", block="all",
    written_at="2026-01-02T03:04:05+00:00",
)  # fmt: skip
CHARGES = (
    Charge(mechanism=SampledGaussian(noise_multiplier=0.8, sample_rate=256 / 60_000), count=1000),
    Charge(mechanism=Gaussian(noise_multiplier=20.0)),
)
MADE = statement(FACTS, charges=CHARGES, versions={"openlepton": "0.1.0"})

facts = st.builds(
    Facts,
    run_id=st.text(max_size=20), epsilon=st.floats(0, 1e6), delta=st.floats(1e-12, 0.5), accounting=st.just("pld"),
    unit=st.sampled_from(["example", "user"]), examples_per_user=st.integers(1, 99), num_units=st.integers(1, 10**9),
    population_given=st.booleans(), sample_rate=st.floats(1e-9, 1), max_batch=st.none() | st.integers(1, 10**6),
    steps_released=st.just(5), steps_planned=st.integers(5, 10**6), clip=st.floats(1e-6, 1e6),
    clipping=st.sampled_from(["flat", "per_layer", "adaptive"]), noise_multiplier=st.floats(1e-3, 1e4),
    normaliser=st.floats(1e-3, 1e9), precision=st.sampled_from(["float", "exact"]),
    correlation=st.sampled_from(["independent", "banded"]), bands=st.integers(1, 64),
    dataset_digest=st.text(max_size=64),
    ledger_id=st.text(max_size=9), tenant=st.text(max_size=9), block=st.text(max_size=9),
    written_at=st.text(max_size=30),
)  # fmt: skip
charges = st.lists(
    st.builds(
        Charge,
        mechanism=st.builds(Gaussian, noise_multiplier=st.floats(1e-3, 1e4))
        | st.builds(
            TruncatedSampledGaussian, noise_multiplier=st.floats(1e-3, 1e4), sample_rate=st.floats(1e-9, 1),
            population=st.integers(1, 10**9), max_batch=st.integers(1, 10**6),
        ),
        count=st.integers(0, 10**6),
    ),
    max_size=3,
).map(tuple)  # fmt: skip


@settings(max_examples=40, deadline=None, derandomize=True)
@given(facts, charges)
def test_a_round_trip_changes_nothing(of: Facts, charged: tuple[Charge, ...]) -> None:
    made = statement(of, charges=charged, versions={"a": "1"})
    text = json.dumps(statement_to_json(made), allow_nan=False)
    assert statement_from_json(json.loads(text)) == made


@settings(max_examples=40, deadline=None, derandomize=True)
@given(facts)
def test_the_page_holds_no_tag_that_is_not_ours(of: Facts) -> None:
    tags: set[str] = set()
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.add(tag)  # type: ignore[method-assign, assignment, misc]
    hostile = replace(of, run_id="<script>alert(1)</script>", tenant='"><img src=x onerror=alert(1)>')
    parser.feed(page(statement(hostile, charges=CHARGES, versions={"<b>": "<i>"})))
    ours = {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "table", "tr", "th", "td", "ul",
        "li", "code",
    }  # fmt: skip
    assert tags == ours


def test_files_are_written_and_read(tmp_path: Path) -> None:
    write_statement(tmp_path, MADE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["privacy.html", "privacy.json"]
    assert read_statement(tmp_path / "privacy.json") == MADE
    shown = (tmp_path / "privacy.html").read_text()
    for words in (
        "epsilon 2.9 at delta 1e-05",
        "differ in one example",
        "60,000, counted in the data",
        "9c1b",
    ):
        assert words in shown
    for sentence in (*MADE.covered, *MADE.not_covered):
        assert sentence.split("'")[0].split('"')[0] in shown


def test_the_scope_follows_from_the_facts() -> None:
    def left_out(**changes: Any) -> str:
        return " ".join(scope(replace(FACTS, **changes))[1])

    assert "evaluation metrics" in left_out()
    assert "number of units" in left_out()
    assert "number of units" not in left_out(population_given=True)
    assert "floating-point" in left_out()
    assert "floating-point" not in left_out(precision="exact")
    assert "several examples" in left_out()
    assert "several examples" not in left_out(unit="user")
    assert "order of the data" in left_out(correlation="banded")
    assert "clip norm" in " ".join(scope(replace(FACTS, clipping="adaptive"))[0])


def words() -> dict[str, Any]:
    return json.loads(json.dumps(statement_to_json(MADE)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", sorted(statement_to_json(MADE)))
def test_every_key_is_needed(name: str) -> None:
    found = words()
    del found[name]
    with pytest.raises(InputError):
        statement_from_json(found)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("epsilon", -1.0, "epsilon"), ("epsilon", "2.9", "a number"), ("epsilon", True, "a number"),
        ("delta", 0.0, "delta"), ("delta", 1.0, "delta"), ("sample_rate", 1.5, "sample_rate"),
        ("noise_multiplier", 0.0, "noise_multiplier"), ("num_units", 6.5, "whole number"), ("clip", None, "a number"),
        ("steps_released", 1001, "steps_released"), ("unit", "household", "one of"),
        ("format", "other", "found 'other'"),
        ("version", 2, "version 2"), ("charges", {}, "a list"), ("charges", [3], "keys and values"),
        ("charges", [{"mechanism": "magic", "count": 1}], "unknown mechanism"), ("covered", [1], "text"),
        ("versions", {"a": 1}, "text"), ("versions", [], "keys and values"), ("extra", 1, "unknown key"),
    ],
)  # fmt: skip
def test_what_is_no_statement_is_refused(name: str, value: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        statement_from_json({**words(), name: value})


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{", '{"format": 1, "format": 2}', '{"epsilon": NaN}', '{"epsilon": Infinity}', "[" * 100_000,
        json.dumps(statement_to_json(MADE)).replace("2.9", "1e999"),
    ],
    ids=["empty", "a list", "cut", "a key twice", "NaN", "infinity", "deep", "overflow"],
)  # fmt: skip
def test_what_is_no_file_of_ours_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "privacy.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"privacy\.json"):
        read_statement(path)
    with pytest.raises(InputError, match="no such file"):
        read_statement(tmp_path / "other.json")


def test_a_statement_is_a_value() -> None:
    assert replace(MADE) == MADE
    assert isinstance(MADE, Statement)
