"""``lepton privacy audit``: the table, the report, the picture and the exit code."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import typer
from rich.console import Console

from leptonai.cli.privacy_audit import _Bar, audit
from leptonai.core.errors import InputError, Refused
from leptonai.security.privacy.accounting.accountant import epsilon
from leptonai.security.privacy.accounting.mechanisms import Charge, SampledGaussian
from leptonai.security.privacy.proof.audit import Effort
from leptonai.security.privacy.proof.statement import write_statement
from leptonai.security.privacy.proof.trainer import OpenTrainer
from tests.security.privacy.proof.test_statement import MADE
from tests.security.privacy.proof.trainers import Fault, LogisticTrainer

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # hostile examples overflow on purpose

EFFORT = Effort(num_canaries=100, membership_units=60, shadow_models=2)


@cache
def epsilon_of(charges: tuple[Charge, ...]) -> float:
    return epsilon(charges, delta=1e-5)


def opened(fault: Fault = "none") -> LogisticTrainer:
    charges = (Charge(mechanism=SampledGaussian(noise_multiplier=1.0, sample_rate=0.1), count=60),)
    return LogisticTrainer(fault=fault, ranks=4, epsilon=epsilon_of(charges), charges=charges)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    of = opened().declared
    facts = replace(
        MADE.facts, epsilon=of.epsilon, delta=of.delta, sample_rate=of.sample_rate, normaliser=of.normaliser,
        num_units=of.num_units, steps_planned=of.steps, steps_released=of.steps, noise_multiplier=1.0,
    )  # fmt: skip
    write_statement(tmp_path, replace(MADE, facts=facts, charges=of.charges))
    return tmp_path


def run(run_dir: Path, fault: Fault = "none", *, as_json: bool = False) -> None:
    def open_trainer(path: Path) -> OpenTrainer:
        assert path == run_dir
        return opened(fault)

    audit(run_dir, open_trainer=open_trainer, effort=EFFORT, key=bytes(32), as_json=as_json)


def test_an_honest_run_passes(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(run_dir)
    shown = capsys.readouterr().out
    table = shown.split("\n\n")[0].splitlines()
    assert len(table) > 20
    assert max(map(len, table)) <= 80
    assert "flagged" not in shown
    assert "LiRA-light" in shown
    assert "with confidence 95.0%" in shown
    report = json.loads((run_dir / "privacy_audit.json").read_text())
    assert report["flagged"] == []
    assert report["run_id"] == "mnist-3f2a"
    assert (run_dir / "privacy_audit.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_broken_run_is_refused_and_the_check_named(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Refused, match="sensitivity, hostile units") as refused:
        run(run_dir, "unclipped bias")
    assert refused.value.exit_code == 3
    shown = capsys.readouterr().out
    assert "flagged" in shown
    assert "largest L2 change by one made-up unit" in shown
    assert json.loads((run_dir / "privacy_audit.json").read_text())["flagged"]


def test_json_is_one_value_and_the_exit_code_says_the_rest(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended:
        run(run_dir, "noise / 10", as_json=True)
    assert ended.value.exit_code == 3
    assert "noise, smallest size" in json.loads(capsys.readouterr().out)["flagged"]


def test_a_run_without_a_statement_claims_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="claims no privacy"):
        run(tmp_path)


def test_a_bar_is_shown_on_a_terminal_once_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.9, 2.1, 2.2])
    monkeypatch.setattr("leptonai.cli.privacy_audit.time.monotonic", lambda: next(now))
    console = Console(force_terminal=True, record=True, width=80)
    with _Bar(console, quiet=False) as bar:
        bar.show("canaries", 1, 10)
        assert bar._progress is None
        bar.show("canaries", 5, 10)
        assert bar._progress is not None
    with _Bar(Console(force_terminal=False), quiet=False) as quiet:
        quiet.show("canaries", 5, 10)
        assert quiet._progress is None
