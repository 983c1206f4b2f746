"""What a private run says of itself when it is over."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import leptonai
from leptonai.security.privacy.proof.statement import Facts, Statement, statement

if TYPE_CHECKING:
    from leptonai.launch.private_run import PrivateRun

_PACKAGES = ("torch", "tensorflow-cpu", "numpy", "scipy", "cryptography")


def statement_of(run: PrivateRun) -> Statement:
    """The statement of all that the run's launches may have released so far."""
    plan, (epsilon, delta) = run.plan, run.total
    facts = Facts(
        run_id=run.run_dir.name, epsilon=epsilon, delta=delta,
        accounting="rdp" if plan.precision == "exact" else "pld", unit=plan.unit,
        examples_per_user=plan.examples_per_user, num_units=plan.num_units,
        population_given=plan.population_given, sample_rate=plan.sample_rate, max_batch=plan.max_batch,
        steps_released=run.steps_released, steps_planned=plan.steps, clip=plan.clip, clipping=plan.clipping,
        noise_multiplier=plan.noise_multiplier, normaliser=plan.examples_per_step, precision=plan.precision,
        correlation=plan.correlation, bands=plan.bands, dataset_digest=run.dataset.digest,
        ledger_id=run.ledger_id, tenant=run.tenant, block=run.block,
        written_at=datetime.fromtimestamp(run.now_seconds, UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    return statement(facts, charges=run.charges(), versions=_versions())


def _versions() -> dict[str, str]:
    found = {"openlepton": leptonai.__version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
