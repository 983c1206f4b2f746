"""What a private run promises, written down for people and programs: ``privacy.json`` and ``privacy.html``.

The format: docs/formats/privacy-statement.md.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from leptonai.core.disk import write_atomically
from leptonai.core.errors import InputError
from leptonai.core.files import read_text
from leptonai.core.privacy import NEIGHBOURS, Clipping, Correlation, Precision, Unit
from leptonai.core.values import value_from_json, value_to_json
from leptonai.security.privacy.accounting.mechanisms import Charge, charge_from_json, charge_to_json

FORMAT = "lepton-privacy-statement"
VERSION = 1
STATEMENT_FILE = "privacy.json"
PAGE_FILE = "privacy.html"
MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was run, in plain values.

    Args:
        run_id: of the run.
        epsilon, delta: of everything that the run may have released, all its launches together.
        accounting: method that gave epsilon, such as ``pld``.
        neighbours: relation of data sets that are told apart no better than that.
        unit: whose presence is hidden.
        examples_per_user: the most examples of one user in a step.
        num_units: that rates were computed with.
        population_given: whether that number was given as public, and is not the data's own.
        sample_rate: chance of a unit to take part in a step.
        max_batch: the most units in a step; None: no limit.
        steps_released, steps_planned: optimiser steps paid for, and of the whole plan.
        clip, clipping: norm that gradients were cut to, and how; of adaptive clipping the first.
        noise_multiplier: noise over sensitivity that the account was made with.
        normaliser: public number that sums were divided by.
        precision, correlation, bands: of the noise.
        dataset_digest: of the data's content.
        ledger_id: under which the ledger has the run; empty where none was kept.
        tenant, block: whose budget paid.
        written_at: when, as ISO 8601 in UTC.

    Raises:
        InputError: a number lies outside its range.
    """

    run_id: str
    epsilon: float
    delta: float
    accounting: str
    unit: Unit
    examples_per_user: int
    num_units: int
    population_given: bool
    sample_rate: float
    max_batch: int | None
    steps_released: int
    steps_planned: int
    clip: float
    clipping: Clipping
    noise_multiplier: float
    normaliser: float
    precision: Precision
    correlation: Correlation
    bands: int
    dataset_digest: str
    ledger_id: str
    tenant: str
    block: str
    written_at: str
    neighbours: str = NEIGHBOURS

    def __post_init__(self) -> None:
        for name in ("clip", "noise_multiplier", "normaliser"):
            _check(name, getattr(self, name), 0, math.inf)
        _check("epsilon", self.epsilon, -1, math.inf)
        _check("delta", self.delta, 0, 1)
        _check("sample_rate", self.sample_rate, 0, 1 + 1e-12)
        for name in ("examples_per_user", "num_units", "steps_planned", "bands"):
            _check(name, getattr(self, name), 0, math.inf)
        _check("steps_released", self.steps_released, -1, self.steps_planned + 1)
        if self.epsilon < 0:
            raise InputError(f"epsilon: expected a number >= 0, found {self.epsilon}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """The promise: facts, what was charged, what it covers and what it does not, and with what it was made.

    Args:
        facts: what was run.
        charges: mechanisms that were accounted for.
        covered, not_covered: sentences; see :func:`scope`.
        versions: of packages, by name.
    """

    facts: Facts
    charges: tuple[Charge, ...]
    covered: tuple[str, ...]
    not_covered: tuple[str, ...]
    versions: Mapping[str, str]


def statement(facts: Facts, *, charges: tuple[Charge, ...], versions: Mapping[str, str]) -> Statement:
    """The statement of a run, with the scope that follows from its facts."""
    covered, not_covered = scope(facts)
    return Statement(
        facts=facts, charges=charges, covered=covered, not_covered=not_covered, versions=dict(versions)
    )


def scope(facts: Facts) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sentences on what the promise covers, and on what it does not."""
    covered = [
        "the model's weights after every step, also intermediate checkpoints and the optimiser's state in them",
        "whatever is computed from these weights alone, such as predictions for other people's inputs",
    ]
    if facts.clipping == "adaptive":
        covered.append("the clip norm that followed the data: its query is charged")
    not_covered = [
        "evaluation metrics: they are computed on data of their own, exactly, and promise that data nothing",
        "training losses and gradient norms, if you publish them: they are private data",
        "time, memory and other side channels of the machines that trained",
        "other runs and statistics on the same data: their costs add up in the ledger, not here",
        "the data's digest, here and in job.json: whoever has all of the data can recognise it",
        "what was decided by looking at the data before the run, such as the model or the preprocessing",
    ]
    if not facts.population_given:
        not_covered.insert(
            2, "the number of units: rates were computed with the data's own (give population)"
        )
    if facts.precision == "float":
        not_covered.append(
            'floating-point attacks on the noise (Mironov 2012): it is made of float32 (give precision="exact")'
        )
    if facts.unit == "example":
        not_covered.append(
            'people with several examples: one example is hidden, not all of one (give unit="user")'
        )
    if facts.correlation == "banded":
        not_covered.append(
            "the order of the data: it is fixed and no secret, and the promise does not rest on it"
        )
    return tuple(covered), tuple(not_covered)


def statement_to_json(made: Statement) -> dict[str, Any]:
    """JSON-ready words."""
    return {
        "format": FORMAT,
        "version": VERSION,
        **value_to_json(made.facts),
        "charges": [charge_to_json(charge) for charge in made.charges],
        "covered": list(made.covered),
        "not_covered": list(made.not_covered),
        "versions": dict(made.versions),
    }


def statement_from_json(words: Mapping[str, Any], *, where: str = STATEMENT_FILE) -> Statement:
    """Inverse of :func:`statement_to_json`; strict.

    Raises:
        InputError: a key is unknown or missing, or a value has the wrong type or lies outside its range.
    """
    if words.get("format") != FORMAT or words.get("version") != VERSION:
        found = f"{str(words.get('format'))[:40]!r}, version {str(words.get('version'))[:10]}"
        raise InputError(f"{where}: expected {FORMAT!r}, version {VERSION}, found {found}")
    names = {field.name for field in dataclasses.fields(Facts)}
    known = names | {"format", "version", "charges", "covered", "not_covered", "versions"}
    for name in words:
        if name not in known:
            raise InputError(f"{where}: unknown key {name[:40]!r}")
    missing = sorted(known - set(words))
    if missing:
        raise InputError(f"{where}: {missing[0]}: is missing")
    try:
        return Statement(
            facts=value_from_json(Facts, {name: words[name] for name in names}),
            charges=tuple(charge_from_json(_mapping("charges", each)) for each in _list(words, "charges")),
            covered=tuple(_text("covered", each) for each in _list(words, "covered")),
            not_covered=tuple(_text("not_covered", each) for each in _list(words, "not_covered")),
            versions={
                name: _text("versions", each)
                for name, each in _mapping("versions", words["versions"]).items()
            },
        )
    except InputError as error:
        raise InputError(f"{where}: {error.message}", hint=error.hint) from None


def write_statement(run_dir: Path, made: Statement) -> None:
    """Write ``privacy.json`` and the page for people into a run directory, each whole or not at all.

    Raises:
        InputError: the directory is missing or may not be written to.
        Fault: the disk is full or broken.
    """
    from leptonai.security.privacy.proof.statement_page import page

    text = json.dumps(statement_to_json(made), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(run_dir / STATEMENT_FILE, f"{text}\n".encode())
    write_atomically(run_dir / PAGE_FILE, page(made).encode())


def read_statement(path: Path) -> Statement:
    """Read a ``privacy.json``; strict.

    Raises:
        InputError: there is none, it is no JSON, has a key twice, or :func:`statement_from_json` refuses it.
    """
    text = read_text(path, max_bytes=MAX_BYTES)
    try:
        words = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no JSON: {str(error)[:80]}") from None
    if not isinstance(words, dict):
        raise InputError(f"{path}: expected keys and values")
    return statement_from_json(words, where=str(path))


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low < value < high:
        raise InputError(f"{name}: expected a number above {low:g} and below {high:g}, found {value}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    words = dict(pairs)
    if len(words) != len(pairs):
        raise ValueError("a key is there twice")
    return words


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _list(words: Mapping[str, Any], name: str) -> list[Any]:
    if not isinstance(words[name], list):
        raise InputError(f"{name}: expected a list, found {str(words[name])[:40]!r}")
    found: list[Any] = words[name]
    return found


def _mapping(name: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{name}: expected keys and values, found {str(value)[:40]!r}")
    return value


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InputError(f"{name}: expected text, found {str(value)[:40]!r}")
    return value
