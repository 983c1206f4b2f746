"""What ``lepton plan`` says of a search: the best layouts, where the time goes, and why the others lost."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from leptonai.cli.output import facts, say, table
from leptonai.cli.plan_bar import phase_bars
from leptonai.compute.interruptions import Interruptions
from leptonai.compute.search.answer import Choice, Rejected, describe
from leptonai.core.units import format_bytes, format_seconds
from leptonai.launch.planning import Answer

SHOWN_LAYOUTS = 5


def print_answer(answer: Answer, console: Console, *, explain: bool) -> None:
    """The answer as tables for people."""
    result, machine = answer.result, answer.machine
    best = result.best
    devices = f"{machine.num_nodes} x {machine.devices_per_node} {machine.device.name}"
    console.print(
        facts(
            {
                "goal": result.goal,
                "devices": f"{devices}, {format_bytes(machine.device.memory_bytes)} each",
                "searched": f"{result.num_layouts:,} layouts, {result.num_too_big:,} need too much memory",
                "best": describe(best.layout),
                "step": f"{format_seconds(best.step_seconds)} "
                f"({format_seconds(best.low_seconds)} to {format_seconds(best.high_seconds)})",
                "memory": f"{format_bytes(best.memory_bytes)} on the fullest device",
                "failures": _failures(answer.interruptions),
                **_whole_run(answer),
            }
        )
    )
    say(console, ("\nwhere the time goes", "bold"))
    console.print(phase_bars([(phase.name, phase.seconds) for phase in best.phases]))
    say(console, ("\nbest layouts", "bold"))
    console.print(_choices((best, *result.runners_up)[:SHOWN_LAYOUTS], machine.currency))
    if explain:
        _explain(answer, console)
    for warning in result.warnings:
        say(console, ("warning: ", "bold yellow"), warning)


def _failures(found: Interruptions) -> str:
    return (
        f"one in {format_seconds(found.mtbf_seconds)}; a checkpoint every {format_seconds(found.interval_seconds)} "
        f"leaves {found.goodput:.1%} of the time to train"
    )


def _whole_run(answer: Answer) -> dict[str, str]:
    best, currency, rows = answer.result.best, answer.machine.currency, {}
    if best.price is not None:
        rows["price"] = f"{best.price:.4g} {currency} a step"
    if best.energy_joules:
        rows["energy"] = f"{best.energy_joules / 3.6e6:.3g} kWh a step"
    if answer.num_steps is not None:
        whole = format_seconds(best.step_seconds * answer.num_steps / answer.interruptions.goodput)
        cost = "" if best.price is None else f", {best.price * answer.num_steps:,.2f} {currency}"
        rows["whole run"] = f"{whole} for {answer.num_steps:,} steps{cost}"
    return rows


def _choices(choices: Sequence[Choice], currency: str) -> Table:
    numbers = ("devices", "step", "memory", currency)
    rows = table("layout", *numbers, right=numbers)
    for choice in choices:
        rows.add_row(
            describe(choice.layout),
            str(choice.layout.num_devices),
            format_seconds(choice.step_seconds),
            format_bytes(choice.memory_bytes),
            "" if choice.price is None else f"{choice.price:.3g}",
        )
    return rows


def _explain(answer: Answer, console: Console) -> None:
    result = answer.result
    say(console, ("\nPareto front (time, price, memory, energy)", "bold"))
    console.print(_choices(result.front[: 3 * SHOWN_LAYOUTS], answer.machine.currency))
    say(console, ("\nwhy the others lost", "bold"))
    console.print(_rejected(result.rejected))
    if answer.sources:
        say(console, ("\nwhat the seconds rest on", "bold"))
        console.print(facts(dict(answer.sources)))


def _rejected(rejected: Sequence[Rejected]) -> Table:
    rows = table("family", "layouts", "reason", right=("layouts",))
    for family in rejected:
        rows.add_row(family.family, f"{family.num_layouts:,}", family.reason)
    return rows
