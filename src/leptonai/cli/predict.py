"""``lepton predict``: what may fail, when, and why, learnt from a history of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leptonai.cli.count_bar import count_bar
from leptonai.cli.options import JsonOption
from leptonai.cli.output import err, out, print_json, say

if TYPE_CHECKING:
    from leptonai.operations.predict.tables import Columns

app = typer.Typer(
    help="Predict failures of machines and equipment from their history.", no_args_is_help=True,
    rich_markup_mode="rich",
)  # fmt: skip

FIT_EXAMPLES = """
[bold]Examples[/bold]

  lepton predict fit nodes.csv --out nodes.safetensors

  lepton predict fit engines.csv --time cycle --setting altitude --time-unit cycles

  lepton predict fit disks.parquet --horizon 24h --horizon 30d --plot held.png
"""
SCORE_EXAMPLES = """
[bold]Example[/bold]

  lepton predict score today.csv --model nodes.safetensors
"""
FLEET_EXAMPLES = """
[bold]Example[/bold]

  lepton predict fleet nodes.csv
"""
HistoryArgument = Annotated[
    Path,
    typer.Argument(
        metavar="HISTORY", show_default=False,
        help="CSV or Parquet, a row a sample: unit, time, readings, and 'failed' in the column of ends.",
    ),
]  # fmt: skip
UnitOption = Annotated[str, typer.Option("--unit", metavar="COLUMN", help="Names the unit of each row.")]
TimeOption = Annotated[
    str, typer.Option("--time", metavar="COLUMN", help="Numbers, or dates and times in ISO 8601.")
]
EndOption = Annotated[str, typer.Option("--end", metavar="COLUMN", help="Where a unit failed.")]
SettingOption = Annotated[
    list[str] | None,
    typer.Option(
        "--setting", metavar="COLUMN", show_default=False,
        help="An operating condition, such as load; may be given again.",
    ),
]  # fmt: skip
LeaveOutOption = Annotated[
    list[str] | None,
    typer.Option(
        "--leave-out", metavar="COLUMN", help="Is not read; may be given again.", show_default=False
    ),
]
PlotOption = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE", help="Also draw a picture (PNG or SVG).", show_default=False),
]


@app.command(epilog=FIT_EXAMPLES)
def fit(
    history: HistoryArgument,
    out_file: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the model goes.")] = Path(
        "model.safetensors"
    ),
    unit: UnitOption = "unit",
    time: TimeOption = "time",
    end: EndOption = "end",
    setting: SettingOption = None,
    leave_out: LeaveOutOption = None,
    horizon: Annotated[
        list[str] | None,
        typer.Option(
            "--horizon",
            metavar="TIME",
            show_default=False,
            help="How far ahead; may be given again. Usual: 1h, 24h and 7d where times are known.",
        ),
    ] = None,
    time_unit: Annotated[
        str,
        typer.Option(
            "--time-unit",
            metavar="UNIT",
            show_default=False,
            help="Of times that are numbers: s, min, h, d or a word such as cycles.",
        ),
    ] = "",
    coverage: Annotated[
        float, typer.Option(min=0.5, max=0.99, help="Of the interval of remaining life.")
    ] = 0.9,
    seed: Annotated[int, typer.Option(min=0, help="Of whatever is drawn.")] = 0,
    plot: PlotOption = None,
    as_json: JsonOption = False,
) -> None:
    """Learn chances of failure and remaining life, and show how they held on units left out."""
    from leptonai.cli.predict_view import show_held
    from leptonai.core.values import value_to_json
    from leptonai.operations.predict.forecast import fit_forecast
    from leptonai.operations.predict.tables import read_history

    columns = _columns(unit, time, end, setting, leave_out)
    recorded = read_history(history, columns)
    with count_bar(err(), "fitting") as count:
        model, held = fit_forecast(
            recorded, columns, horizons=horizon or (), time_unit=time_unit, coverage=coverage, seed=seed,
            progress=lambda done, of: count("fitting", done, of),
        )  # fmt: skip
    if plot is not None:
        from leptonai.cli.reliability_plot import draw_reliability

        draw_reliability(held.reliabilities, model.horizon_words, plot)
    model.save(out_file)
    if as_json:
        print_json({"model": str(out_file), "horizons": model.horizon_words, **value_to_json(held)})
        return
    show_held(out(), model, held)
    say(out(), f"model        {out_file}")


@app.command(epilog=SCORE_EXAMPLES)
def score(
    history: HistoryArgument,
    model_file: Annotated[Path, typer.Option("--model", metavar="FILE", help="What fit wrote.")] = Path(
        "model.safetensors"
    ),
    top: Annotated[int, typer.Option(min=1, help="Units shown at most.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """Say of each unit that still works how likely it fails, how long it has left, and why."""
    from leptonai.cli.predict_view import score_to_json, show_scores
    from leptonai.operations.predict.forecast import Forecast
    from leptonai.operations.predict.tables import read_history

    model = Forecast.load(model_file)
    found = model.score(read_history(history, model.columns).history)
    if as_json:
        print_json(score_to_json(model, found))
        return
    show_scores(out(), model, found, top)


@app.command(epilog=FLEET_EXAMPLES)
def fleet(
    history: HistoryArgument,
    unit: UnitOption = "unit",
    time: TimeOption = "time",
    end: EndOption = "end",
    leave_out: LeaveOutOption = None,
    time_unit: Annotated[
        str,
        typer.Option("--time-unit", metavar="UNIT", help="Of times that are numbers.", show_default=False),
    ] = "",
    top: Annotated[int, typer.Option(min=1, help="Units shown at most.")] = 10,
    plot: PlotOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how long units live, and which fail more often than luck explains."""
    from leptonai.cli.predict_view import show_fleet
    from leptonai.core.values import value_to_json
    from leptonai.operations.predict.fleet import fleet_of
    from leptonai.operations.predict.tables import read_history

    recorded = read_history(history, _columns(unit, time, end, None, leave_out))
    found = fleet_of(recorded.history)
    words = "s" if recorded.dated else (time_unit or "units of time")
    if plot is not None:
        from leptonai.cli.reliability_plot import draw_lives

        draw_lives(recorded.history, found, words, plot)
    if as_json:
        print_json({"time_unit": words, **value_to_json(found)})
        return
    show_fleet(out(), found, words, top)


def _columns(
    unit: str, time: str, end: str, setting: list[str] | None, leave_out: list[str] | None
) -> Columns:
    from leptonai.operations.predict.tables import Columns

    return Columns(
        unit=unit, time=time, end=end, settings=tuple(setting or ()), left_out=tuple(leave_out or ())
    )
