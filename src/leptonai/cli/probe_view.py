"""What a probe found, for people: tables, a curve in the terminal, and a picture."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from leptonai.cli.output import say, table
from leptonai.cli.terminal_curve import Line, draw_lines
from leptonai.core.units import format_bytes, format_flops, format_rate, format_seconds

if TYPE_CHECKING:
    from leptonai.compute.measured import Measured, RateSample
    from leptonai.launch.probe_findings import Skipped, Spread
    from leptonai.launch.probing import Probed

# Shown of each kind: enough to see how rates grow with size, few enough for one screen.
MOST_ROWS = 4
SHARED_KINDS = ("matmul", "convolution")
KINDS = (*SHARED_KINDS, *(f"cuda_{kind}" for kind in SHARED_KINDS))
CURVE_HEIGHT = 7
NOISY_SPREAD = 0.25
LINE_COLUMNS = 78
GIGA = 1e9


def print_probed(probed: Probed, console: Console) -> None:
    """Everything that was found, in at most 80 columns."""
    measured = probed.measured
    versions = ", ".join(f"{name} {version}" for name, version in measured.versions)
    say(console, f"{measured.cores} cores, {versions}, measured in {probed.seconds:.0f} s\n")
    say(console, "GFLOP/s of one process, forward, by processes at once x threads of each")
    console.print(rates(measured))
    say(console, "\nmatrix products, GFLOP/s (a: one thread, b: all threads, c: one of all busy)")
    console.print(draw_lines(curves(measured), height=CURVE_HEIGHT, across="log10 FLOPs", log=True))
    console.print()
    console.print(links(measured))
    console.print()
    console.print(rest(measured))
    for line in (*noisy_lines(probed.spreads), *skipped_lines(probed.skipped)):
        say(console, line)


def noisy_lines(spreads: Sequence[Spread]) -> list[str]:
    """What varied much, by setting."""
    by_setting: dict[str, list[str]] = {}
    for each in spreads:
        if each.value > NOISY_SPREAD:
            by_setting.setdefault(each.setting, []).append(each.kind)
    if not by_setting:
        return []
    return [
        f"\nnoisy (quartiles more than {NOISY_SPREAD:.0%} apart), so the quieter half counts:",
        *(_folded(f"{setting}: {', '.join(kinds)}") for setting, kinds in by_setting.items()),
        "measure again when nothing else runs",
    ]


def skipped_lines(skipped: Sequence[Skipped]) -> list[str]:
    """What was left out, by setting, with the reason."""
    counts = Counter((each.setting, each.kind, each.precision, each.why) for each in skipped)
    if not counts:
        return []
    by_setting: dict[str, list[str]] = {}
    for (setting, kind, precision, why), count in counts.items():
        name = f"{kind} {precision}".strip()
        by_setting.setdefault(setting, []).append(f"{count} of {name} ({why})")
    return [
        f"\nnot measured, so plans use the sizes about them: {len(skipped)} sizes",
        *(_folded(f"{setting}: {', '.join(words)}") for setting, words in by_setting.items()),
    ]


def _folded(text: str) -> str:
    return textwrap.fill(text, LINE_COLUMNS, initial_indent="  ", subsequent_indent="    ")


def rates(measured: Measured) -> Table:
    """Rates of some kernels, by how the machine was used."""
    settings = sorted({(each.num_busy, each.threads) for each in measured.kernels})
    names = [f"{busy} x {threads}" for busy, threads in settings]
    found = table("kernel", "size", "precision", *names, right=tuple(names))
    by_case: dict[tuple[str, tuple[int, ...], str], dict[tuple[int, int], RateSample]] = {}
    for each in measured.kernels:
        if each.kind in KINDS and not each.backward:
            case = by_case.setdefault((each.kind, each.dims, each.precision), {})
            case[each.num_busy, each.threads] = each
    for kind in KINDS:
        for precision in ("float32", "bfloat16"):
            cases = sorted(
                (dims for each, dims, precise in by_case if (each, precise) == (kind, precision)),
                key=lambda dims: flops_of(kind, dims),
            )
            for dims in _spread(cases, MOST_ROWS):
                cells = by_case[kind, dims, precision]
                found.add_row(
                    kind, "x".join(map(str, dims)), precision,
                    *(f"{rate_of(cells[each]) / GIGA:.3g}" if each in cells else "-" for each in settings),
                )  # fmt: skip
    return found


def links(measured: Measured) -> Table:
    """Messages: the fitted line and how far the samples lie from it."""
    numbers = ("workers", "latency", "bandwidth", "off by", "sizes")
    found = table("message", *numbers, right=numbers)
    for fit in measured.transfers:
        sizes = [size for size, _ in fit.samples]
        span = f"{format_bytes(min(sizes))} - {format_bytes(max(sizes))}" if sizes else ""
        name = fit.kind if not fit.ends else f"{fit.kind} {'-'.join(fit.ends)}"
        found.add_row(
            name, str(fit.num_workers), format_seconds(fit.latency_seconds),
            format_rate(fit.bandwidth_bytes_per_second), f"{fit.error:.0%}", span,
        )  # fmt: skip
    return found


def rest(measured: Measured) -> Table:
    """Memory, calls, disk and start."""
    found = table("what", "found", right=("found",))
    for threads, rate in measured.memory_bytes_per_second:
        found.add_row(f"memory, {threads} thread{'s' if threads > 1 else ''}", format_rate(rate))
    for name, seconds in measured.call_seconds:
        found.add_row(f"smallest call of {name}, forward and backward", format_seconds(seconds))
    if measured.disk_write_bytes_per_second > 0:
        found.add_row("disk, write with fsync", format_rate(measured.disk_write_bytes_per_second))
        found.add_row("disk, read", format_rate(measured.disk_read_bytes_per_second))
        found.add_row("disk, one fsync", format_seconds(measured.sync_seconds))
    for name, seconds in measured.start_seconds:
        what = "engine and first worker" if name == "engine" else f"further {name} workers"
        found.add_row(f"start, {what}", format_seconds(seconds))
    return found


def curves(measured: Measured) -> list[Line]:
    """Rates of forward float32 products by the logarithm of their FLOPs: the middle of each half decade."""
    marks = zip("abc", _three_settings(measured), strict=False)
    lines = []
    for mark, setting in marks:
        bins: dict[float, list[float]] = {}
        for each in products(measured, setting):
            place = round(2 * math.log10(flops_of(each.kind, each.dims))) / 2
            bins.setdefault(place, []).append(rate_of(each) / GIGA)
        lines.append(
            Line(points=[(place, statistics.median(bins[place])) for place in sorted(bins)], mark=mark)
        )
    return lines


def products(measured: Measured, setting: tuple[int, int]) -> list[RateSample]:
    """Forward float32 matrix products of one setting (processes, threads), by their FLOPs."""
    found = [
        each
        for each in measured.kernels
        if each.kind == "matmul" and each.precision == "float32" and not each.backward
        if (each.num_busy, each.threads) == setting
    ]
    return sorted(found, key=lambda each: flops_of(each.kind, each.dims))


def draw_rates(measured: Measured, path: Path) -> None:
    """A picture: efficiency of matrix products and convolutions by their FLOPs, by how the machine was used.

    Efficiency is the rate over the best rate that the same kernels reached with as many threads.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), SHARED_KINDS, strict=True):
        for busy, threads in _three_settings(measured):
            samples = [
                each
                for each in measured.kernels
                if each.kind == kind and each.precision == "float32"
                if (each.num_busy, each.threads) == (busy, threads)
            ]
            best = max(map(rate_of, samples), default=1.0)
            label = f"{busy} process{'es' if busy > 1 else ''} x {threads} thread{'s' if threads > 1 else ''}"
            axes.plot(
                [flops_of(each.kind, each.dims, backward=each.backward) for each in samples],
                [rate_of(each) / best for each in samples],
                "o", markersize=3, alpha=0.7, label=f"{label}: 1 is {format_flops(best)}",
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_ylim(0, 1.05)
        axes.set_title(f"{kind}, float32")
        axes.set_xlabel("FLOPs of one call")
        axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.2))
    figure.supylabel("share of the best rate")
    figure.savefig(path, dpi=130, format="png")


def flops_of(kind: str, dims: tuple[int, ...], *, backward: bool = False) -> float:
    """FLOPs of one call of a matrix product or a convolution."""
    from leptonai.compute.probe_cases import KernelCase

    if kind.endswith("convolution"):
        return KernelCase(kind="convolution", dims=dims, backward=backward).flops
    return KernelCase(kind="matmul", dims=dims).flops


def rate_of(sample: RateSample) -> float:
    """FLOP/s of one process."""
    return flops_of(sample.kind, sample.dims, backward=sample.backward) / sample.seconds


def _three_settings(measured: Measured) -> list[tuple[int, int]]:
    """(processes, threads): alone, all threads, all busy; those that were measured."""
    found = {(each.num_busy, each.threads) for each in measured.kernels if each.kind == "matmul"}
    wanted = [(1, 1), (1, max(t for _, t in found)), (max(b for b, _ in found), 1)] if found else []
    return list(dict.fromkeys(each for each in wanted if each in found))


def _spread(items: Sequence[tuple[int, ...]], most: int) -> list[tuple[int, ...]]:
    """At most so many of the items, evenly over them, with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]
