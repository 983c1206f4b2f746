"""Real runs opened up: each way to be private passes the checks of its own code."""

from __future__ import annotations

import pytest

from leptonai.core.errors import InputError
from leptonai.launch.private_audit import open_trainer
from leptonai.security.privacy.proof.audit import Effort, audit_trainer
from tests.launch.conftest import Runner

QUICK = Effort(num_canaries=0, membership_units=0, num_steps=2)


@pytest.mark.parametrize(
    "changes",
    [
        "", "clipping='adaptive'", "precision='exact'", "correlation='banded', bands=4, epsilon=20.0",
        "unit='user', users=users, examples_per_user=2",
    ],
)  # fmt: skip
def test_an_honest_run_passes(changes: str, run: Runner) -> None:
    run(f"private(steps=6, epochs=None, {changes})")
    found = audit_trainer(open_trainer(run.home / "run"), key=bytes(32), effort=QUICK)
    assert found.flagged == ()
    assert len(found.findings) > 8


def test_a_run_without_a_promise_cannot_be_audited(run: Runner) -> None:
    run("toy(steps=3, epochs=None)")
    with pytest.raises(InputError, match="not a private run"):
        open_trainer(run.home / "run")


def test_a_run_whose_data_changed_since_cannot_be_audited(run: Runner) -> None:
    run("private(steps=3, epochs=None)")
    job = run.home / "run.py"
    other = "data=Data(train=Arrays(inputs + 1, labels))"
    job.write_text(job.read_text().replace("epochs=None", f"epochs=None, {other}"))
    with pytest.raises(InputError, match="changed since"):
        open_trainer(run.home / "run")
