"""``lepton privacy audit``: hold a private run to its statement."""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from leptonai.cli.output import err, out, print_json, say, shown_path, table
from leptonai.core.disk import write_atomically
from leptonai.core.errors import InputError, Refused

if TYPE_CHECKING:
    from leptonai.security.privacy.proof.audit import Audit, Effort
    from leptonai.security.privacy.proof.findings import Finding
    from leptonai.security.privacy.proof.trainer import OpenTrainer

REPORT_FILE = "privacy_audit.json"
PICTURE_FILE = "privacy_audit.png"
SECONDS_BEFORE_A_BAR = 2.0
_FAMILIES = {
    "statement": "the statement", "neighbours": "neighbouring data", "canaries": "canaries",
    "membership": "membership",
}  # fmt: skip


def audit(
    run_dir: Path,
    *,
    open_trainer: Callable[[Path], OpenTrainer],
    effort: Effort,
    key: bytes | None = None,
    as_json: bool = False,
) -> None:
    """Audit the run in ``run_dir`` and show what was found.

    Writes ``privacy_audit.json`` and ``privacy_audit.png`` into the run directory.

    Args:
        run_dir: holds ``privacy.json``.
        open_trainer: gives the run's trainer, opened up.
        effort: how much work.
        key: of the audit's randomness; None: fresh.
        as_json: print the report instead of a table.

    Raises:
        InputError: the run has no statement.
        Refused: a check flagged the run; with ``as_json`` the process ends with its exit code instead.
    """
    from leptonai.security.privacy.proof.audit import audit_trainer, with_statement
    from leptonai.security.privacy.proof.picture import draw_audit
    from leptonai.security.privacy.proof.statement import STATEMENT_FILE, read_statement

    path = run_dir / STATEMENT_FILE
    if not path.is_file():
        raise InputError(
            f"{shown_path(run_dir)}: has no {STATEMENT_FILE}, so it claims no privacy",
            hint="train with TrainJob(privacy=Privacy(...))",
        )
    made = read_statement(path)
    trainer = open_trainer(run_dir)
    with _Bar(err(), quiet=as_json) as bar:
        found = audit_trainer(
            trainer, key=key or secrets.token_bytes(32), effort=effort, on_progress=bar.show
        )
    found = with_statement(found, made, trainer.declared)
    report = {**found.to_json(), "run_id": made.facts.run_id}
    write_atomically(run_dir / REPORT_FILE, (json.dumps(report, indent=2, allow_nan=False) + "\n").encode())
    draw_audit(found, run_dir / PICTURE_FILE, title=f"Privacy audit of {made.facts.run_id}")
    if as_json:
        print_json(report)
    else:
        print_audit(found, out())
        say(out(), f"\nreport   {shown_path(run_dir / REPORT_FILE)}")
        say(out(), f"picture  {shown_path(run_dir / PICTURE_FILE)}")
    if found.flagged and as_json:
        raise typer.Exit(Refused.exit_code)
    if found.flagged:
        raise Refused(
            f"{len(found.flagged)} check(s) flagged the run: {', '.join(row.name for row in found.flagged)}",
            hint="do not release it under its statement: what it promises does not hold",
        )


def print_audit(found: Audit, console: Console) -> None:
    """A row a check, within 80 columns, and a sentence for each that was flagged."""
    made = table("check", "measured", "allowed", "verdict", right=("measured", "allowed"))
    family = ""
    for row in found.findings:
        if row.family != family:
            family = row.family
            made.add_row(f"[{_FAMILIES[family]}]", "", "", "", style="bold")
        made.add_row(f"  {row.name}", _number(row.measured), _allowed(row), row.verdict, style=_style(row))
    console.print(made)
    for row in found.flagged:
        console.print()
        console.print(f"{row.name}: {row.detail}", soft_wrap=False)
    console.print()
    for bound in found.bounds:
        say(
            console,
            f"epsilon is at least {bound.epsilon:.2f} of the {found.epsilon:.4g} that are claimed, "
            f"with confidence {bound.confidence:.1%}",
        )
    if found.num_steps < found.total_steps:
        say(console, f"each run of the audit had {found.num_steps:,} of {found.total_steps:,} steps")


def _allowed(row: Finding) -> str:
    sign = {"at most": "<=", "at least": ">=", "about": "~"}[row.limit]
    return "-" if math.isnan(row.allowed) else f"{sign} {_number(row.allowed)}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.5g}"


def _style(row: Finding) -> str:
    return {"flagged": "bold red", "skipped": "dim"}.get(row.verdict, "")


class _Bar:
    """A bar on a terminal, once the work has taken two seconds."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._console = console
        self._wanted = console.is_terminal and not quiet
        self._began = time.monotonic()
        self._progress: Progress | None = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def show(self, what: str, done: int, total: int) -> None:
        """Called as the audit goes on."""
        if not self._wanted or time.monotonic() - self._began < SECONDS_BEFORE_A_BAR:
            return
        if self._progress is None:
            columns = (BarColumn(bar_width=20), TextColumn("{task.percentage:3.0f} %  {task.description}"))
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._progress.start()
            self._progress.add_task(what, total=total)
        self._progress.update(self._progress.task_ids[0], completed=done, total=total, description=what)
