"""``lepton privacy``: what may be spent of the privacy of data, what was, and by whom."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leptonai.cli.options import DEFAULT_HOME, HomeOption, JsonOption, home_directory
from leptonai.cli.output import out, print_json, say, table
from leptonai.core.errors import Fault, InputError

if TYPE_CHECKING:
    from leptonai.security.privacy.ledger.entries import Dataset
    from leptonai.security.privacy.ledger.ledger import Ledger
    from leptonai.security.privacy.ledger.views import Budget, Record

DatasetOf = Callable[[Path], "Dataset"]
"""The data set that a job file trains on, or that a table is."""
FILES = (".py", ".csv", ".parquet", ".pq")

LEDGER_EXAMPLES = """
[bold]Examples[/bold]

  lepton privacy ledger

  lepton privacy ledger mnist --json

  lepton privacy ledger --verify
"""
GRANT_EXAMPLES = """
[bold]Examples[/bold]

  lepton privacy grant job.py --epsilon 3 --delta 1e-5

  lepton privacy grant patients --epsilon 1 --delta 1e-6 --tenant research --until 2027-01-01

  lepton privacy grant default --epsilon 8 --delta 1e-5

[dim]A charge must fit every grant it touches: its tenant's and all tenants', its block's and all blocks'.[/dim]
"""
HISTORY_EXAMPLES = """
[bold]Example[/bold]

  lepton privacy history mnist
"""

DatasetArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATASET",
        help="A name in the ledger, the beginning of a digest, a job file (.py), a table (.csv, .parquet), "
        "or [bold]default[/bold]: all data without a grant of its own.",
        show_default=False,
    ),
]
WorkspaceOption = Annotated[
    str | None,
    typer.Option(
        "--workspace",
        metavar="URL",
        envvar="LEPTON_WORKSPACE",
        help="The database, such as [bold]postgresql://user@host/name[/bold]; else workspace.db in the home.",
        show_default=False,
    ),
]


def privacy_app(dataset_of: DatasetOf | None = None) -> typer.Typer:
    """The commands.

    Args:
        dataset_of: looks into a job file; None: job files are not understood.
    """
    app = typer.Typer(
        help="Privacy budgets: what is granted, spent and left.",
        no_args_is_help=True,
        rich_markup_mode="rich",
    )

    @app.callback()
    def provide(context: typer.Context) -> None:
        context.obj = dataset_of

    app.command("ledger", epilog=LEDGER_EXAMPLES)(show_ledger)
    app.command("grant", epilog=GRANT_EXAMPLES)(grant)
    app.command("history", epilog=HISTORY_EXAMPLES)(show_history)
    return app


def show_ledger(
    context: typer.Context,
    dataset: Annotated[
        str | None, typer.Argument(metavar="[DATASET]", help="Only this one.", show_default=False)
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check the seal of every row.")] = False,
    home: HomeOption = DEFAULT_HOME,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is granted, spent, reserved and left of each data set's privacy."""
    with _ledger(home, workspace) as ledger:
        if verify:
            _report_problems(ledger, as_json=as_json)
            return
        wanted = None if dataset is None else _find(ledger, dataset, context.obj)
        budgets = [
            each for each in ledger.budgets() if wanted is None or each.dataset.digest == wanted.digest
        ]
    if as_json:
        print_json([dataclasses.asdict(budget) for budget in budgets])
    elif not budgets:
        say(out(), "no budgets yet; give one with: lepton privacy grant DATASET --epsilon E --delta D")
    else:
        _print_budgets(budgets)


def grant(
    context: typer.Context,
    dataset: DatasetArgument,
    epsilon: Annotated[float, typer.Option("--epsilon", help="All charges together may cost so much, > 0.")],
    delta: Annotated[float, typer.Option("--delta", help="At this failure probability, in (0, 1).")],
    tenant: Annotated[
        str, typer.Option("--tenant", help="Whose charges; [bold]all[/bold]: everybody's together.")
    ] = "all",
    block: Annotated[
        str, typer.Option("--block", help="Whose privacy; [bold]all[/bold]: everyone's in the data.")
    ] = "all",
    until: Annotated[
        str | None,
        typer.Option(
            "--until",
            metavar="DATE",
            help="Nothing new from then on: 2027-01-31, 2027-01-31T12:00 (UTC), or [bold]now[/bold].",
            show_default=False,
        ),
    ] = None,
    digest: Annotated[
        str | None,
        typer.Option(
            "--digest",
            metavar="HEX",
            help="Of data the ledger does not know; DATASET becomes its name.",
            show_default=False,
        ),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Grant a privacy budget to a data set, in place of an earlier one."""
    from leptonai.security.privacy.ledger.entries import DEFAULT, Dataset

    until_seconds = None if until is None else _seconds(until)
    with _ledger(home, workspace) as ledger:
        if dataset == DEFAULT:
            made = ledger.grant_default(
                tenant, block, epsilon=epsilon, delta=delta, until_seconds=until_seconds
            )
            name = "every data set without a grant of its own"
        else:
            found = (
                _find(ledger, dataset, context.obj) if digest is None else Dataset(digest.lower(), dataset)
            )
            made = ledger.grant(
                found, tenant, block, epsilon=epsilon, delta=delta, until_seconds=until_seconds
            )
            name = f"{found.name} ({found.digest[:12]})"
    if as_json:
        print_json(dataclasses.asdict(made))
        return
    say(out(), f"granted epsilon {made.epsilon:g} at delta {made.delta:g} to {name}")


def show_history(
    context: typer.Context,
    dataset: DatasetArgument,
    home: HomeOption = DEFAULT_HOME,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every grant and charge of a data set, oldest first; of each request's leases the last."""
    from leptonai.security.privacy.ledger.entries import DEFAULT

    with _ledger(home, workspace) as ledger:
        wanted = None if dataset == DEFAULT else _find(ledger, dataset, context.obj)
        records = [
            record for record in ledger.history(wanted) if wanted is not None or record.dataset == DEFAULT
        ]
    if as_json:
        print_json([dataclasses.asdict(record) for record in records])
        return
    rows = table("when (UTC)", "entry", "tenant", "block", "what")
    for record in last_leases(records):
        kind = f"{record.kind} default" if record.dataset == DEFAULT else record.kind
        rows.add_row(_moment(record.at_seconds), kind, record.tenant, record.block, record.text)
    out().print(rows)


def last_leases(records: Sequence[Record]) -> list[Record]:
    """The records without leases that a later one of the same request goes beyond."""
    last = {record.request_id: record.number for record in records if record.kind == "lease"}
    return [each for each in records if each.kind != "lease" or last[each.request_id] == each.number]


@contextmanager
def _ledger(home: Path, url: str | None) -> Iterator[Ledger]:
    from leptonai.core.clock import SystemClock
    from leptonai.core.workspace import Workspace
    from leptonai.launch.registry import workspace_url
    from leptonai.security.privacy.ledger.ledger import open_ledger

    directory = home_directory(home)
    with Workspace.open(url or workspace_url(directory)) as workspace:
        yield open_ledger(workspace, directory / "ledger.key", SystemClock())


def _find(ledger: Ledger, word: str, dataset_of: DatasetOf | None) -> Dataset:
    if word.endswith(FILES) and dataset_of is not None:
        return dataset_of(Path(word))
    return ledger.find(word)


def _report_problems(ledger: Ledger, *, as_json: bool) -> None:
    problems = ledger.verify()
    if as_json and not problems:
        print_json({"problems": []})
    elif problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise Fault(
            f"the privacy ledger was altered: {'; '.join(problems[:3])}{more}",
            hint="put back the last good copy of the workspace; until then nothing is charged",
        )
    else:
        say(out(), "every row bears its seal")


def _print_budgets(budgets: list[Budget]) -> None:
    numbers = ("granted", "spent", "reserved", "left")
    rows = table("data set", "tenant", "block", *numbers, "delta", right=numbers)
    for budget in budgets:
        granted = "no limit" if budget.granted is None else _short(budget.granted)
        left = "" if budget.left is None else "ended" if budget.ended else _short(budget.left)
        rows.add_row(
            budget.dataset.name, budget.tenant, budget.block, granted, _short(budget.spent),
            _short(budget.reserved), left, f"{budget.delta:.0e}".replace("e-0", "e-"),
        )  # fmt: skip
    out().print(rows)


def _short(epsilon: float) -> str:
    return f"{epsilon:.3f}" if math.isfinite(epsilon) else "infinite"


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))


def _seconds(words: str) -> float:
    """The moment that ``--until`` names, in seconds since 1970."""
    if words == "now":
        return time.time()
    try:
        found = datetime.fromisoformat(words)
    except ValueError:
        raise InputError(
            f"--until: {words!r} is no date", hint="write 2027-01-31 or 2027-01-31T12:00 (UTC)"
        ) from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
