"""The figures that come with the package: each has a source and a date, and none contradicts the others."""

from __future__ import annotations

import re

import pytest

from leptonai.compute.hardware.catalogue import find, load_catalogue
from leptonai.compute.hardware.entries import AcceleratorEntry, Figure, Instance, Precision

CATALOGUE = load_catalogue()
ACCELERATORS = list(CATALOGUE.accelerators.values())
INSTANCES = list(CATALOGUE.instances.values())
MOST_16_BIT_FLOPS = 2.6e15
"""Between the dense peak of a B200 (2.25e15) and what sparsity would make of an MI300X (2.61e15) or B200 (4.5e15)."""


def figures() -> list[tuple[str, Figure]]:
    entries: list[AcceleratorEntry | Instance] = [*ACCELERATORS, *INSTANCES]
    return [(f"{each.name}: {name}", figure) for each in entries for name, figure in each.figures()]


@pytest.mark.parametrize(("place", "figure"), figures(), ids=[place for place, _ in figures()])
def test_every_figure_has_a_source_and_a_date(place: str, figure: Figure) -> None:
    assert figure.source.title
    assert figure.source.publisher
    dates = f"{figure.source.dated} {figure.source.retrieved}"
    assert re.search(r"\b20[12][0-9]\b", dates), dates
    assert figure.value > 0


@pytest.mark.parametrize("entry", ACCELERATORS, ids=lambda entry: entry.name)
def test_narrower_numbers_are_never_slower(entry: AcceleratorEntry) -> None:
    chains: tuple[tuple[Precision, ...], ...] = (
        ("fp64", "fp64_tensor"), ("fp64", "fp32", "tf32", "fp16"), ("fp32", "bf16", "fp8"), ("bf16", "int8"),
    )  # fmt: skip
    for chain in chains:
        rates = [figure.value for each in chain if (figure := entry.peak(each)) is not None]
        assert rates == sorted(rates), chain
    if entry.peak("fp16") and entry.peak("bf16"):
        assert entry.peak("fp16") == entry.peak("bf16")


@pytest.mark.parametrize("entry", ACCELERATORS, ids=lambda entry: entry.name)
def test_figures_lie_where_devices_of_this_kind_do(entry: AcceleratorEntry) -> None:
    half = entry.peak("bf16") or entry.peak("fp16")
    if entry.kind != "cpu":
        assert half is not None
        assert 5e13 <= half.value <= MOST_16_BIT_FLOPS
        assert 1.2e11 <= entry.memory_bandwidth_bytes_per_second.value <= 8.1e12
        assert 1.6e10 <= entry.memory_bytes.value <= 2e11
        assert entry.interconnect is not None
        assert (
            entry.interconnect.bandwidth_bytes_per_second.value
            < entry.memory_bandwidth_bytes_per_second.value
        )
    else:
        single = entry.peak("fp32")
        assert single is not None
        assert 1e11 <= single.value <= 1e13
        assert 1e10 <= entry.memory_bandwidth_bytes_per_second.value <= 1e12
        assert entry.cores
    if entry.power_watts is not None:
        assert 10 <= entry.power_watts.value <= 1200


@pytest.mark.parametrize("instance", INSTANCES, ids=lambda instance: instance.name)
def test_prices_lie_where_prices_do(instance: Instance) -> None:
    price, spot = instance.price(spot=False), instance.price(spot=True)
    assert price is not None
    assert 0.3 <= price / instance.count <= 20
    assert spot is None or 0 < spot < price
    if instance.network_bytes_per_second is not None:
        assert 1e9 <= instance.network_bytes_per_second.value <= 2e12


def test_several_clouds_are_there() -> None:
    assert {each.cloud for each in INSTANCES} >= {"AWS", "GCP", "Azure", "Lambda", "RunPod"}


def test_what_was_not_verified_is_marked() -> None:
    unverified = [place for place, figure in figures() if not figure.verified]
    assert any("a10g" in place for place in unverified)
    assert all("peak bf16" not in place or "xeon" in place for place in unverified)


# Typed from the documents a second time: TFLOP/s dense, GB/s, GB/s one way.
GOLDEN = {
    "v100-sxm2-32gb": ("fp16", 125.0, 900.0, 150.0),
    "a100-sxm-40gb": ("bf16", 312.0, 1555.0, 300.0),
    "a100-sxm-80gb": ("tf32", 156.0, 2039.0, 300.0),
    "a100-pcie-80gb": ("bf16", 312.0, 1935.0, 32.0),
    "h100-sxm-80gb": ("bf16", 989.4, 3350.0, 450.0),
    "h100-pcie-80gb": ("bf16", 756.0, 2000.0, 64.0),
    "h200-sxm-141gb": ("fp8", 1979.0, 4800.0, 450.0),
    "b200-sxm-180gb": ("bf16", 2250.0, 8000.0, 900.0),
    "mi300x": ("bf16", 1307.4, 5300.0, 448.0),
    "tpu-v4": ("bf16", 275.0, 1200.0, 300.0),
    "tpu-v5e": ("bf16", 197.0, 819.0, 200.0),
    "tpu-v5p": ("bf16", 459.0, 2765.0, 600.0),
    "tpu-v6e": ("bf16", 918.0, 1600.0, 400.0),
    "l4": ("bf16", 121.0, 300.0, 32.0),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_well_known_figures(name: str) -> None:
    precision, teraflops, memory, link = GOLDEN[name]
    entry = find(name)
    peak = dict(entry.peak_flops)[precision]  # type: ignore[index]
    assert entry.interconnect is not None
    assert peak.value == pytest.approx(teraflops * 1e12, rel=1e-12)
    assert entry.memory_bandwidth_bytes_per_second.value == pytest.approx(memory * 1e9, rel=1e-12)
    assert entry.interconnect.bandwidth_bytes_per_second.value == pytest.approx(link * 1e9, rel=1e-12)


def test_a_processor_s_peak_is_cores_times_clock_times_width() -> None:
    for name, cores, gigahertz, single_a_cycle in (("epyc-7763", 64, 2.45, 32), ("epyc-9654", 96, 2.4, 32)):
        peak = find(name).peak("fp32")
        assert peak is not None
        assert peak.value == pytest.approx(cores * gigahertz * 1e9 * single_a_cycle)
