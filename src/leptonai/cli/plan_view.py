"""What ``lepton plan`` says of a plan."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from leptonai.cli.output import facts, say, table
from leptonai.cli.plan_bar import phase_bars
from leptonai.compute.forecast import Forecast
from leptonai.compute.plan import Estimate, Plan
from leptonai.compute.servers import ServerPlan
from leptonai.core.privacy import PrivacyForecast
from leptonai.core.units import format_bytes, format_flops, format_rate, format_seconds


def print_plan(made: Plan, console: Console, *, explain: bool = False) -> None:
    """The plan as tables for people; with ``explain``, everything the forecast rests on."""
    tuning, workload = made.tuning, made.workload
    console.print(
        facts(
            {
                "strategy": f"{made.strategy} over {made.num_workers} worker(s), backend {made.backend}",
                "precision": f"{tuning.precision}, {tuning.memory_format}, "
                f"{'compiled' if tuning.compile else 'not compiled'} ({tuning.why or 'default'})",
                "model": f"{workload.num_parameters:,} parameters, {format_bytes(workload.parameter_bytes)}",
                "run": f"{workload.total_steps:,} steps of {workload.global_batch_size:,} examples",
                **(_servers(made.servers) if made.servers is not None else {}),
                **(_privacy(made.privacy) if made.privacy is not None else {}),
            }
        )
    )
    console.print()
    console.print(_placements(made))
    console.print()
    console.print(_estimate(made.estimate, made.workload.total_steps))
    for assumption in made.estimate.assumptions:
        say(console, (f"assumed: {assumption}", "dim"))
    if made.forecast is not None:
        _print_forecast(made.forecast, console, explain=explain)
    for warning in made.warnings:
        say(console, ("warning: ", "bold yellow"), warning)


def _print_forecast(made: Forecast, console: Console, *, explain: bool) -> None:
    interval = f"{format_seconds(made.low_seconds)} and {format_seconds(made.high_seconds)}"
    say(console, ("\nforecast of a step", "bold"), f" with rates {made.rates}")
    console.print(
        facts(
            {
                "step": f"{format_seconds(made.step_seconds)}, nine in ten between {interval}",
                "memory": f"{format_bytes(made.memory_bytes)} each worker",
            }
        )
    )
    console.print(phase_bars([(phase.name, phase.seconds) for phase in made.phases]))
    for assumption in made.assumptions if explain else ():
        say(console, (f"assumed: {assumption}", "dim"))


def _servers(servers: ServerPlan) -> dict[str, str]:
    return {
        "servers": f"{servers.num_servers}: {servers.why}",
        "consistency": servers.consistency,
        "durability": f"{servers.durability}: {servers.survives}",
        "memory": f"{format_bytes(servers.memory_bytes)} shared with the workers of this machine",
        "T_apply": f"{format_seconds(servers.apply_seconds)} an update",
    }


def _privacy(privacy: PrivacyForecast) -> dict[str, str]:
    return {
        "privacy": f"epsilon {privacy.epsilon:.3f} at delta {privacy.delta:g} for the whole run, "
        f"by {privacy.unit}, one more or less",
        "noise": f"{privacy.noise_multiplier:.4g} times the clip, each of {privacy.num_units:,} "
        f"{privacy.unit}s sampled with {privacy.sample_rate:.4g}",
    }


def _placements(made: Plan) -> Table:
    rows = table("worker", "node", "device", "threads", "cores", right=("worker", "threads"))
    for place in made.placements:
        index = "" if place.device_index is None else f" {place.device_index}"
        cores = ",".join(str(core) for core in place.cores) or "not pinned"
        rows.add_row(str(place.rank), place.node, place.device_kind + index, str(place.threads), cores)
    return rows


def _estimate(estimate: Estimate, total_steps: int) -> Table:
    rows = table("per step", "time", "from", right=("time",))
    bandwidth, speed = estimate.bandwidth_bytes_per_second, estimate.flops_per_second
    exchanged = f"{format_bytes(estimate.bytes_exchanged)} exchanged"
    transfer = f"{exchanged} / {format_rate(bandwidth)}" if bandwidth else exchanged
    operations = format_flops(estimate.flops).removesuffix("/s")
    compute = f"{operations} / {format_flops(speed)}" if speed else operations
    rows.add_row("T_transfer", _time(estimate.transfer_seconds), transfer)
    rows.add_row("T_compute", _time(estimate.compute_seconds), compute)
    total = estimate.total_seconds
    whole = "" if total is None else f"{format_seconds(total * total_steps)} for the whole run"
    rows.add_row("T_total", _time(total), whole)
    return rows


def _time(seconds: float | None) -> str:
    return "unknown" if seconds is None else format_seconds(seconds)
