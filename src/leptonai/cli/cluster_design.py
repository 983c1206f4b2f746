"""``lepton cluster design``: which network to build for a job."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leptonai.cli.count_bar import Count, count_bar
from leptonai.cli.options import DEFAULT_HOME, HomeOption, JsonOption, SetOption
from leptonai.cli.output import err, out, print_json
from leptonai.core.errors import InputError, Refused

if TYPE_CHECKING:
    from leptonai.cli.design_job import Wanted
    from leptonai.compute.prediction.machine import Machine
    from leptonai.compute.topology.design import Design, Site

DESIGN_EXAMPLES = """
[bold]Examples[/bold]

  lepton cluster design --devices 512 --model gpt-22b --budget 25M

  lepton cluster design --devices 64 --model 24,2048,16,1024,50257 --accelerator a100-80gb

  lepton cluster design --devices 64 --job job.py --set global_batch_size=4096

[dim]--model takes a known name, or layers,hidden,heads,sequence,vocabulary,feed_forward.[/dim]
"""
EXAMPLES_PER_DEVICE = 2
MOST_DEVICES = 4096
"""Ways between all pairs of devices are worked out; twice as many take six times as long, and so many a minute."""
RINGS = (
    "Step times assume rings that pass through nodes in order, and all devices for this job alone: an "
    "oversubscribed tree looks better here than for scattered jobs or all-to-all traffic."
)
NIC_RATE = "400Gb/s"
_AMOUNT = re.compile(r"\$?([0-9]+(?:\.[0-9]+)?)([kKmMbB]?)")
_FACTORS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}


def design(
    devices: Annotated[
        int, typer.Option("--devices", min=1, help="How many, over all nodes.", show_default=False)
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="NAME|NUMBERS", help="A transformer that is trained.", show_default=False
        ),
    ] = None,
    job: Annotated[
        Path | None,
        typer.Option("--job", metavar="FILE", help="In place of --model: a job file.", show_default=False),
    ] = None,
    settings: SetOption = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget", metavar="USD", help="Most that all may cost, such as 20M.", show_default=False
        ),
    ] = None,
    accelerator: Annotated[str, typer.Option("--accelerator", help="A name of the catalogue.")] = "h100-sxm",
    per_node: Annotated[int, typer.Option("--per-node", min=1, help="Devices of one node.")] = 8,
    nic: Annotated[str, typer.Option("--nic", metavar="RATE", help="Of one network card.")] = NIC_RATE,
    nics: Annotated[
        int | None,
        typer.Option(
            "--nics", min=1, help="Cards of a node. Left out: one for each device.", show_default=False
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            help="With --model: examples of a step. Left out: two for each device.",
            show_default=False,
        ),
    ] = None,
    server_price: Annotated[
        str | None,
        typer.Option(
            "--server-price", metavar="USD", help="Of a node without its cards.", show_default=False
        ),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Compare topologies for a job: cost, bisection and step time; the best within the budget is marked."""
    from leptonai.cli.cluster_view import money, print_designs

    _check_words(model, job, settings, batch)
    limit = None if budget is None else parse_amount("--budget", budget)
    site = _site(devices, accelerator, per_node, nic, nics, server_price)
    console = err()
    with count_bar(console, "tracing the job" if job else "topologies") as count:
        wanted = _wanted(
            model, job, settings, EXAMPLES_PER_DEVICE * devices if batch is None else batch, home
        )
        site = _in_precision(site, wanted)
        found = _compare(site, wanted, limit, count)
    if not any(not each.reason for each in found):
        if limit is not None and (cheapest := min(each.price for each in found)) > limit:
            raise Refused(
                f"no topology of {devices} devices costs {money(limit)} or less; the cheapest costs {money(cheapest)}",
                hint="raise --budget, or ask for fewer --devices",
            )
        reason = next(each.reason for each in found if limit is None or each.price <= limit)
        raise InputError(
            f"the job runs on no topology: {reason}",
            hint="ask for more --devices, or larger ones by --accelerator",
        )
    answer = _answer(found, site, wanted, from_file=job is not None)
    if as_json:
        print_json(answer)
        return
    shown = out()
    print_designs({**answer, "model": _words(wanted)}, shown)
    shown.print(RINGS, style="dim")


def _check_words(model: str | None, job: Path | None, settings: list[str] | None, batch: int | None) -> None:
    if model is not None and job is not None:
        raise InputError("--model and --job are both given", hint="keep one of them")
    if model is None and job is None:
        raise InputError(
            "nothing to design for: --model or --job is missing",
            hint="name a transformer by --model, or a job file by --job",
        )
    if model is not None and settings:
        raise InputError("--set is for the settings of a --job", hint="leave it out beside --model")
    if job is not None and batch is not None:
        raise InputError(
            "--batch is for --model; a job has its own batch", hint=f"--set global_batch_size={batch}"
        )
    if batch is not None and batch < 1:
        raise InputError(f"--batch: expected at least 1, found {batch}")


def _wanted(
    model: str | None, job: Path | None, settings: list[str] | None, batch: int, home: Path
) -> Wanted:
    from leptonai.cli.design_job import wanted_job, wanted_transformer

    if job is not None:
        return wanted_job(job, settings, home)
    assert model is not None
    return wanted_transformer(model, batch)


def _in_precision(site: Site, wanted: Wanted) -> Site:
    """The site with devices that compute as the job does."""
    from leptonai.compute.hardware.catalogue import find
    from leptonai.compute.hardware.machines import job_device

    if wanted.precision is None:
        return site
    return replace(site, device=job_device(find(site.device.name), wanted.precision))


def _compare(site: Site, wanted: Wanted, budget: float | None, count: Count) -> list[Design]:
    """All designs, while a bar counts topologies and, within one, the layouts searched."""
    from leptonai.compute.topology.design import compare

    done, total = 0, 1

    def after(topologies: int, all_topologies: int) -> None:
        nonlocal done, total
        done, total = topologies, all_topologies
        count("topologies", done, total)

    def within(layouts: int, all_layouts: int) -> None:
        count("topologies", done + layouts / all_layouts, total)

    def step_seconds(machine: Machine) -> float:
        return wanted.step_seconds(machine, within)

    return compare(site, step_seconds, budget=budget, on_progress=after)


def _words(wanted: Wanted) -> str:
    if wanted.precision is None:
        return wanted.name
    return f"{wanted.name} ({wanted.precision}, batch {wanted.batch})"


def parse_amount(name: str, text: str) -> float:
    """US dollars that a person wrote.

    Raises:
        InputError: it is no amount.

    >>> parse_amount("--budget", "20M"), parse_amount("--budget", "$1.5b")
    (20000000.0, 1500000000.0)
    """
    found = _AMOUNT.fullmatch(text.strip())
    if found is None or float(found[1]) == 0:
        raise InputError(f"{name}: {text!r} is no amount of dollars", hint="write 20M, 350k or 1500000")
    return float(found[1]) * _FACTORS[found[2].lower()]


def _site(
    devices: int, accelerator: str, per_node: int, nic: str, nics: int | None, price: str | None
) -> Site:
    from leptonai.compute.cluster import Device
    from leptonai.compute.cluster_parts import fill_device, interconnect_of
    from leptonai.compute.hardware.catalogue import find
    from leptonai.compute.prediction.machine import Accelerator
    from leptonai.compute.topology.design import Site
    from leptonai.compute.topology.prices import server_price
    from leptonai.core.units import parse_bytes_per_second

    if devices > MOST_DEVICES:
        raise InputError(
            f"--devices: networks of up to {MOST_DEVICES:,} devices can be compared, found {devices:,}",
            hint="design a part that repeats, such as a pod",
        )
    if devices % per_node:
        raise InputError(
            f"--devices: expected a multiple of the {per_node} devices of a node, found {devices}",
            hint="give a multiple, or another --per-node",
        )
    entry = find(accelerator)
    device = fill_device(Device(kind=entry.kind, accelerator=entry.name, cores=entry.cores))
    rate = interconnect_of((device,))
    if rate is None and per_node > 1:
        raise InputError(
            f"--accelerator: the catalogue gives no rate between the devices of a node with {entry.name}",
            hint="give --per-node 1",
        )
    assert device.peak_flops
    assert device.memory_bytes
    assert device.memory_bandwidth_bytes_per_second
    return Site(
        device=Accelerator(
            name=entry.name, peak_flops=device.peak_flops * (device.cores or 1), memory_bytes=device.memory_bytes,
            memory_bandwidth_bytes_per_second=device.memory_bandwidth_bytes_per_second,
            power_watts=entry.power_watts.value if entry.power_watts else 0.0,
        ),
        num_nodes=devices // per_node, per_node=per_node, in_node_bytes_per_second=rate or 1.0,
        nic_bytes_per_second=parse_bytes_per_second(nic), nics=per_node if nics is None else nics,
        server_price=server_price(entry.name, per_node) if price is None else parse_amount("--server-price", price),
    )  # fmt: skip


def _answer(found: list[Design], site: Site, wanted: Wanted, *, from_file: bool) -> dict[str, Any]:
    from leptonai.compute.topology.prices import assumptions

    best = found[0]
    rivals = [each for each in found[1:] if not each.reason]
    why = f"best: {best.name}"
    if rivals and best.step_seconds:
        fastest = min(rivals, key=lambda each: each.step_seconds or 0.0)
        slower = (fastest.step_seconds or 0.0) / best.step_seconds - 1
        why += (
            f", {slower:.1%} faster than {fastest.name}"
            if slower >= 0.0005
            else f", as fast as {fastest.name} and {(fastest.price - best.price) / fastest.price:.1%} cheaper"
        )
    return {
        "devices": site.num_nodes * site.per_node,
        "per_node": site.per_node,
        "accelerator": site.device.name,
        "model": None if from_file else wanted.name,
        "job": wanted.name if from_file else None,
        "precision": wanted.precision,
        "batch": wanted.batch,
        "why": f"{why}.",
        "assumes": RINGS,
        "server_price": site.server_price,
        "prices": assumptions(site.server_price),
        "designs": [
            {
                "topology": each.name, "kind": each.fabric.kind, "best": each is best, "reason": each.reason,
                "switches": each.parts.switches, "cables": each.parts.cables, "nics": each.parts.nics,
                "fabric_price": each.parts.price, "price": each.price,
                "bisection_bytes_per_second": each.halves.bytes_per_second, "bisection_exact": each.halves.exact,
                "node_bytes_per_second": each.node_bytes_per_second, "step_seconds": each.step_seconds,
            }
            for each in found
        ],
    }  # fmt: skip
