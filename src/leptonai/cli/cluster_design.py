"""``lepton cluster design``: which network to build for a job."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leptonai.cli.options import JsonOption
from leptonai.cli.output import err, out, print_json
from leptonai.core.errors import InputError, Refused

if TYPE_CHECKING:
    from leptonai.compute.prediction.machine import Machine
    from leptonai.compute.topology.design import Design, Site
    from leptonai.compute.transformer import Transformer

DESIGN_EXAMPLES = """
[bold]Examples[/bold]

  lepton cluster design --devices 512 --model gpt-22b --budget 25M

  lepton cluster design --devices 64 --model 24,2048,16,1024,50257 --accelerator a100-80gb

[dim]--model takes a known name, or layers,hidden,heads,sequence,vocabulary,feed_forward.[/dim]
"""
MOST_MICRO_BATCH = 8
MOST_INTERLEAVE = 4
NIC_RATE = "400Gb/s"
_AMOUNT = re.compile(r"\$?([0-9]+(?:\.[0-9]+)?)([kKmMbB]?)")
_FACTORS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}


def design(
    devices: Annotated[int, typer.Option("--devices", help="How many, over all nodes.", show_default=False)],
    model: Annotated[str, typer.Option("--model", help="What is trained.", show_default=False)],
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget", metavar="USD", help="Most that all may cost, such as 20M.", show_default=False
        ),
    ] = None,
    accelerator: Annotated[str, typer.Option("--accelerator", help="A name of the catalogue.")] = "h100-sxm",
    per_node: Annotated[int, typer.Option("--per-node", help="Devices of one node.")] = 8,
    nic: Annotated[str, typer.Option("--nic", metavar="RATE", help="Of one network card.")] = NIC_RATE,
    nics: Annotated[
        int | None,
        typer.Option("--nics", help="Cards of a node. Left out: one for each device.", show_default=False),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch", help="Examples of a step. Left out: two for each device.", show_default=False
        ),
    ] = None,
    server_price: Annotated[
        str | None,
        typer.Option(
            "--server-price", metavar="USD", help="Of a node without its cards.", show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare topologies for a job: cost, bisection and step time; the best within the budget is marked."""
    from leptonai.cli.cluster_view import money, print_designs
    from leptonai.compute.models import find_model
    from leptonai.compute.topology.design import compare

    limit = None if budget is None else parse_amount("--budget", budget)
    wanted = find_model(model)
    site = _site(devices, accelerator, per_node, nic, nics, server_price)
    examples = batch or 2 * devices
    console = err()
    with console.status("comparing topologies"):
        found = compare(site, lambda machine: _step_seconds(wanted, machine, examples), budget=limit)
    possible = [each for each in found if not each.reason]
    if not possible:
        if limit is not None and (cheapest := min(each.price for each in found)) > limit:
            raise Refused(
                f"no topology of {devices} devices costs {money(limit)} or less; the cheapest costs {money(cheapest)}",
                hint="raise --budget, or ask for fewer --devices",
            )
        raise InputError(f"the job runs on no topology: {found[0].reason}", hint="ask for more --devices")
    answer = _answer(found, site, model, examples)
    if as_json:
        print_json(answer)
    else:
        print_designs(answer, out())


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

    if devices < 1 or per_node < 1 or devices % per_node:
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


def _step_seconds(model: Transformer, machine: Machine, batch: int) -> float:
    """The step time of the best layout, out of the usual ones."""
    from dataclasses import replace

    from leptonai.compute.prediction.layouts import PLACEMENTS
    from leptonai.compute.search.transformers import plan_transformer, transformer_space

    space = replace(
        transformer_space(model, machine, batch, max_micro_batch=MOST_MICRO_BATCH),
        max_tensor=machine.devices_per_node, max_interleave=MOST_INTERLEAVE, zero=(0, 1), placement=PLACEMENTS[:1],
    )  # fmt: skip
    return plan_transformer(model, machine, batch, space=space, top=1).best.step_seconds


def _answer(found: list[Design], site: Site, model: str, batch: int) -> dict[str, Any]:
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
        "model": model,
        "batch": batch,
        "why": f"{why}.",
        "prices": assumptions(),
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
