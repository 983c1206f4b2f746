"""The Typer application, and what becomes of its errors."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import typer
from typer.models import ArgumentInfo

from leptonai.cli import (
    agent,
    chaos,
    cluster,
    collector,
    data,
    doctor,
    export,
    faults,
    ops,
    plan,
    predict,
    privacy_check,
    private,
    replay,
    resize,
    runs,
    train,
)
from leptonai.cli.hardware import hardware_app
from leptonai.cli.output import INTERNAL_ERROR_CODE, INTERRUPTED_CODE, err, out, print_error, print_json, say
from leptonai.cli.privacy import privacy_app
from leptonai.core.errors import InputError, LeptonError

if TYPE_CHECKING:
    from leptonai.security.privacy.ledger.entries import Dataset

# Typer brings its own Click from 0.26 on, so its error is found through a subclass that Typer exports.
UsageProblem: type[Exception] = next(
    base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException"
)

EXAMPLES = """
[bold]Examples[/bold]

  lepton data get mnist

  lepton train examples/mnist/job.py --cluster examples/mnist/cluster.yaml

  lepton runs list
"""


def build_app() -> typer.Typer:
    """All commands in one application."""
    app = typer.Typer(
        name="lepton",
        help="Train models on the machines you have, and know before you start what it will cost.",
        epilog=EXAMPLES,
        rich_markup_mode="rich",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command(epilog=train.EXAMPLES)(train.train)
    app.command(epilog=plan.EXAMPLES)(plan.plan)
    app.command(epilog=chaos.EXAMPLES)(chaos.chaos)
    app.add_typer(runs.app, name="runs")
    app.command(epilog=replay.EXAMPLES)(replay.replay)
    app.command(epilog=resize.EXAMPLES)(resize.resize)
    app.add_typer(cluster.app, name="cluster")
    app.add_typer(hardware_app(), name="hardware")
    app.command(epilog=agent.EXAMPLES)(agent.agent)
    app.command(epilog=collector.EXAMPLES)(collector.collector)
    app.add_typer(ops.app, name="ops")
    app.add_typer(faults.app, name="faults")
    app.add_typer(predict.app, name="predict")
    app.add_typer(data.app, name="data")
    privacy = privacy_app(_dataset_of)
    privacy.command("audit", epilog=privacy_check.EXAMPLES)(privacy_check.audit_run)
    app.add_typer(privacy, name="privacy")
    app.add_typer(private.app, name="private")
    app.command(epilog=export.EXAMPLES)(export.export)
    app.command(epilog=doctor.EXAMPLES)(doctor.doctor)
    app.command()(version)
    return app


def _dataset_of(path: Path) -> Dataset:
    if path.suffix == ".py":
        from leptonai.launch.private_scout import dataset_of_job

        return dataset_of_job(path)
    from leptonai.security.privacy.statistics.session import dataset_of_table

    return dataset_of_table(path)


def build_command() -> Any:
    """The whole command line as a Click command."""
    command = typer.main.get_command(build_app())
    _restore_argument_help(command)
    return command


def _restore_argument_help(command: Any) -> None:
    """Typer before 0.26 loses the help of arguments when it runs with Click 8.5 or newer."""
    for each in getattr(command, "commands", {}).values():
        _restore_argument_help(each)
    hints = get_type_hints(command.callback, include_extras=True) if command.callback else {}
    for parameter in command.params:
        for info in getattr(hints.get(parameter.name), "__metadata__", ()):
            if isinstance(info, ArgumentInfo) and parameter.help is None:
                parameter.help = info.help


def version() -> None:
    """Print the version of leptonai and of Python."""
    import platform

    from leptonai import __version__

    out().print(f"lepton {__version__} (Python {platform.python_version()})")


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; no exception leaves here."""
    as_json = "--json" in arguments
    command = build_command()
    try:
        result = command.main(args=list(arguments), prog_name="lepton", standalone_mode=False)
        sys.stdout.flush()
    except UsageProblem as error:
        return print_error(_input_error(error), as_json=as_json)
    except LeptonError as error:
        return print_error(error, as_json=as_json)
    except typer.Abort:
        return INTERRUPTED_CODE
    except BrokenPipeError:
        return _reader_left()
    except SystemExit as error:
        # Typer answers a broken pipe with this, and ends shell completion with it.
        if isinstance(error.__context__, BrokenPipeError):
            return _reader_left()
        raise
    except Exception as error:
        return _our_bug(error, as_json=as_json)
    return result if isinstance(result, int) else 0


def _input_error(error: Any) -> InputError:
    """A wrong command line in the words of our own errors."""
    context = getattr(error, "ctx", None)
    hint = f"see: {context.command_path} --help" if context is not None else None
    return InputError(error.format_message(), hint=hint)


def _reader_left() -> int:
    """The reader of our output (such as ``head``) has all it wants; Python must not complain when it flushes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _our_bug(error: Exception, *, as_json: bool) -> int:
    message = f"unexpected {type(error).__name__}: {error}"
    if as_json:
        print_json({"error": {"kind": "Bug", "exit_code": INTERNAL_ERROR_CODE, "message": message}})
    say(err(), ("".join(traceback.format_exception(error)), "dim"))
    say(err(), ("error: ", "bold red"), message)
    say(err(), ("  hint: ", "bold"), "this is a bug in lepton; please report it with the lines above")
    return INTERNAL_ERROR_CODE
