"""``lepton private``: answers about a table that tell hardly anything about any one in it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from leptonai.cli.options import DEFAULT_HOME, HomeOption, JsonOption, home_directory
from leptonai.cli.privacy import WorkspaceOption

if TYPE_CHECKING:
    from leptonai.security.privacy.accounting.mechanisms import Charge
    from leptonai.security.privacy.statistics.calibrate import EpsilonOf
    from leptonai.security.privacy.statistics.query import Query, Request
    from leptonai.security.privacy.statistics.query_file import StatisticName
    from leptonai.security.privacy.statistics.session import Released

Kind = Literal["auto", "laplace", "gaussian"]

app = typer.Typer(
    help="Answer questions about a table under differential privacy.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

STATS_EXAMPLES = """
[bold]Examples[/bold]

  lepton private stats visits.csv --count --unit visitor --epsilon 0.5

  lepton private stats visits.csv --mean minutes --bounds 0:240 --unit visitor --epsilon 1

  lepton private stats visits.csv --histogram city --unit visitor --epsilon 1 --delta 1e-6

  lepton private stats visits.csv --query questions.yaml --epsilon 1 --delta 1e-6

[dim]Bounds come from what is publicly known, never from the table. What the answers cost is charged to the
privacy ledger before they are given; --plan shows it, and the error bars, and charges nothing.[/dim]
"""

TableArgument = Annotated[
    Path, typer.Argument(metavar="TABLE", help="A CSV file with a heading, or Parquet.", show_default=False)
]


@app.callback()
def private() -> None:
    """Answer questions about a table under differential privacy."""


@app.command(epilog=STATS_EXAMPLES)
def stats(
    table: TableArgument,
    query: Annotated[
        Path | None,
        typer.Option("--query", "-q", metavar="FILE", help="What to ask (YAML).", show_default=False),
    ] = None,
    count: Annotated[bool, typer.Option("--count", help="Count rows.")] = False,
    sum_of: Annotated[
        str | None, typer.Option("--sum", metavar="COLUMN", help="Sum of a column.", show_default=False)
    ] = None,
    mean_of: Annotated[
        str | None, typer.Option("--mean", metavar="COLUMN", help="Mean of a column.", show_default=False)
    ] = None,
    median_of: Annotated[
        str | None, typer.Option("--median", metavar="COLUMN", help="Median of a column.", show_default=False)
    ] = None,
    histogram_of: Annotated[
        str | None,
        typer.Option(
            "--histogram", metavar="COLUMN", help="Rows for each value of a column.", show_default=False
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            "--by", metavar="COLUMN", help="One answer for each value of a column.", show_default=False
        ),
    ] = None,
    keys: Annotated[
        str | None,
        typer.Option(
            "--keys",
            metavar="KEY,KEY",
            help="Those values, if they are public; else they come from the table, rare ones left out.",
            show_default=False,
        ),
    ] = None,
    bounds: Annotated[
        str | None,
        typer.Option(
            "--bounds",
            metavar="LOW:HIGH",
            help="What values of the column can be, from public knowledge; others are cut to that.",
            show_default=False,
        ),
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option("--epsilon", metavar="E", help="The most all answers may cost.", show_default=False),
    ] = None,
    delta: Annotated[
        float | None,
        typer.Option(
            "--delta", metavar="D", help="Chance that they cost more; below 1 / units.", show_default=False
        ),
    ] = None,
    unit: Annotated[
        str | None,
        typer.Option(
            "--unit",
            metavar="COLUMN",
            help="Whose a row is: all rows of one are protected together. Without it, each row by itself.",
            show_default=False,
        ),
    ] = None,
    rows_per_unit: Annotated[
        int | None,
        typer.Option(
            "--rows-per-unit",
            metavar="N",
            help="Rows of one unit that count, chosen at random; more rows, more noise. Default: 1.",
            show_default=False,
        ),
    ] = None,
    groups_per_unit: Annotated[
        int | None,
        typer.Option(
            "--groups-per-unit",
            metavar="N",
            help="Groups that one unit counts in, chosen at random. Default: 1.",
            show_default=False,
        ),
    ] = None,
    noise: Annotated[
        Kind,
        typer.Option(
            "--noise", metavar="KIND", help="laplace, gaussian, or the one with smaller error bars."
        ),
    ] = "auto",
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Show costs and error bars; read no rows and charge nothing.")
    ] = False,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            metavar="NAME",
            help="What the ledger calls the table. Default: its file's name.",
            show_default=False,
        ),
    ] = None,
    tenant: Annotated[str, typer.Option("--tenant", metavar="NAME", help="Whose budget pays.")] = "default",
    block: Annotated[str, typer.Option("--block", metavar="NAME", help="Which units' budget pays.")] = "all",
    request_id: Annotated[
        str | None,
        typer.Option(
            "--request-id",
            metavar="ID",
            help="Makes sure that a repeated command answers once.",
            show_default=False,
        ),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer questions about a table, with noise that hides any one unit of it.

    Counts, sums, means, quantiles and histograms, of all rows or by group. Every answer comes with an error bar:
    noise moves it by more than that in one case of twenty.
    """  # fmt: skip
    from leptonai.cli import private_view
    from leptonai.security.privacy.accounting.accountant import epsilon as account
    from leptonai.security.privacy.statistics.calibrate import calibrated, epsilon_spent
    from leptonai.security.privacy.statistics.query import Limits, Request
    from leptonai.security.privacy.statistics.query_file import Asked, quick_queries, read_queries

    quick = quick_queries(
        _statistics(count, {"sum": sum_of, "mean": mean_of, "quantile": median_of, "histogram": histogram_of}),
        by=by, keys=keys, bounds=bounds,
    )  # fmt: skip
    _check_words(query, quick, by=by, keys=keys, bounds=bounds)
    asked = Asked(queries=quick) if query is None else read_queries(query)
    request = Request(
        queries=asked.queries,
        epsilon=_needed(_either("epsilon", epsilon, asked.epsilon)),
        delta=_either("delta", delta, asked.delta, default=0.0),
        unit=_either("unit", unit, asked.unit),
        limits=Limits(
            rows=_either("rows-per-unit", rows_per_unit, asked.rows_per_unit, default=1),
            groups=_either("groups-per-unit", groups_per_unit, asked.groups_per_unit, default=1),
        ),
    )

    def epsilon_of(charges: Sequence[Charge], at_delta: float) -> float:
        return account(charges, delta=at_delta)

    if plan_only:
        plan = calibrated(request, epsilon_of, noise=noise)
        spent = epsilon_spent(plan, epsilon_of)
        private_view.show_plan(plan, spent, as_json=as_json)
        return
    released = _answered(
        table, request, epsilon_of, noise, home_directory(home), workspace,
        dataset=dataset or table.name, tenant=tenant, block=block, request_id=request_id or _new_id(),
    )  # fmt: skip
    private_view.show_answers(released, as_json=as_json)


def _answered(
    table: Path, request: Request, epsilon_of: EpsilonOf, noise: Kind, home: Path, url: str | None, *,
    dataset: str, tenant: str, block: str, request_id: str,
) -> Released:  # fmt: skip
    """Open the ledger of the home and answer."""
    from leptonai.core.clock import SystemClock
    from leptonai.core.workspace import Workspace
    from leptonai.launch.registry import workspace_url
    from leptonai.security.privacy.ledger.ledger import open_ledger
    from leptonai.security.privacy.noise.discrete import DiscreteSource
    from leptonai.security.privacy.statistics.randomness import Randomness
    from leptonai.security.privacy.statistics.session import Purse, answer

    with closing(Workspace.open(url or workspace_url(home))) as opened:
        ledger = open_ledger(opened, home / "ledger.key", SystemClock())
        purse = Purse(ledger=ledger, dataset=dataset, tenant=tenant, block=block, request_id=request_id)
        return answer(
            table, request, purse=purse, epsilon_of=epsilon_of, noise=noise,
            randomness=lambda: Randomness(DiscreteSource()),
        )  # fmt: skip


def _new_id() -> str:
    return f"stats-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def _statistics(
    count: bool, columns: Mapping[StatisticName, str | None]
) -> list[tuple[StatisticName, str | None]]:
    found: list[tuple[StatisticName, str | None]] = [("count", None)] if count else []
    return found + [(name, column) for name, column in columns.items() if column is not None]


def _check_words(
    query: Path | None, quick: Sequence[Query], *, by: str | None, keys: str | None, bounds: str | None
) -> None:
    from leptonai.core.errors import InputError
    from leptonai.security.privacy.statistics.query import Count

    if query is None and not quick:
        raise InputError(
            "nothing was asked", hint="--count, --mean COLUMN --bounds LOW:HIGH, or --query FILE"
        )
    if query is not None and (quick or by or keys or bounds):
        raise InputError("a query file says everything that is asked", hint="leave out one of the two")
    measured = {each.statistic.column for each in quick if not isinstance(each.statistic, Count)}
    if len(measured) > 1:
        raise InputError("one --bounds cannot fit several columns", hint="write a query file")
    if bounds is not None and not measured:
        raise InputError("--bounds means nothing to a count")


def _needed(epsilon: float | None) -> float:
    from leptonai.core.errors import InputError

    if epsilon is None:
        raise InputError("epsilon is missing", hint="--epsilon 1, or epsilon: 1 in the query file")
    return epsilon


def _either(name: str, word: Any, written: Any, *, default: Any = None) -> Any:
    """The value of the command line or of the file; both are refused unless they agree."""
    from leptonai.core.errors import InputError

    if word is not None and written is not None and word != written:
        raise InputError(f"--{name} {word} differs from the query file's {written}", hint="give one of them")
    found = word if word is not None else written
    return default if found is None else found
