"""The audits of :mod:`benchmarks.privacy_audit`, of honest or of broken trainers, in one process.

``python -m benchmarks.privacy_audit_runs PART --report FILE --count N [--seed N] [--quick]``
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.privacy_audit_trainers import BROKEN, EngineTrainer, Setting
from leptonai.security.privacy.proof.audit import Audit, Effort, audit_trainer
from leptonai.security.privacy.proof.trainer import derived_key

CLAIMS = (1.0, 4.0, 8.0)
BROKEN_CLAIM = 4.0
FULL = Effort(num_canaries=2000, num_input_canaries=500, membership_units=1000)
QUICK = Effort(num_canaries=200, num_input_canaries=0, membership_units=100)
QUICK_SETTING = {"num_units": 400, "steps": 20}


def honest(count: int, seed: int, quick: bool) -> dict[str, Any]:
    """Audits of the honest trainer, each with a key of its own, in turn with each claim.

    ``bound_C`` are the lower bounds at 95 % of the runs that claim epsilon C, ``sure_C`` those at 99.9 %.
    """
    claims = [CLAIMS[turn % len(CLAIMS)] for turn in range(count)]
    report: dict[str, Any] = {"runs": count, "within": 0, "flagged": 0, "flagged_by": []}
    for turn, claim in enumerate(claims):
        found = _audit(EngineTrainer(_setting(claim, quick)), f"honest {seed} {turn}", quick)
        bound, sure = (each.epsilon for each in found.bounds)
        report["within"] += bound <= found.epsilon
        report["flagged"] += bool(found.flagged)
        report["flagged_by"] += [row.name for row in found.flagged]
        report.setdefault(f"bound_{claim:g}", []).append(bound)
        report.setdefault(f"sure_{claim:g}", []).append(sure)
    return report


def broken(count: int, seed: int, quick: bool) -> dict[str, Any]:
    """One audit of each broken trainer; ``named``: for each, the checks that flagged it."""
    named: dict[str, list[str]] = {}
    bounds = []
    for how in BROKEN[:count]:
        trainer = EngineTrainer(_setting(BROKEN_CLAIM, quick), broken=how)
        found = _audit(trainer, f"broken {seed} {how}", quick)
        named[how] = [f"{row.family}: {row.name}" for row in found.flagged]
        bounds.append(found.bounds[0].epsilon)
    return {"runs": len(named), "flagged": sum(map(bool, named.values())), "named": named, "bound": bounds}


PARTS: Mapping[str, Callable[[int, int, bool], dict[str, Any]]] = {"honest": honest, "broken": broken}


def _setting(claim: float, quick: bool) -> Setting:
    return Setting(epsilon=claim, **QUICK_SETTING) if quick else Setting(epsilon=claim)


def _audit(trainer: EngineTrainer, name: str, quick: bool) -> Audit:
    return audit_trainer(trainer, key=derived_key(b"benchmark", name), effort=QUICK if quick else FULL)


def main(argv: Sequence[str] | None = None) -> int:
    """Do one part and write its report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args(argv)
    torch.set_num_threads(1)
    words.report.write_text(json.dumps(PARTS[words.part](words.count, words.seed, words.quick)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
