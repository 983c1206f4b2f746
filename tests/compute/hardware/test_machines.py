"""Catalogue entries as machines."""

from __future__ import annotations

import pytest

from leptonai.compute.hardware.catalogue import find, load_catalogue
from leptonai.compute.hardware.machines import machine_from, most_nodes, to_accelerator, training_precision
from leptonai.core.errors import InputError

CATALOGUE = load_catalogue()


def test_an_accelerator_takes_the_rate_of_its_precision() -> None:
    entry = find("a100")
    assert to_accelerator(entry, "fp32").peak_flops == 19.5e12
    assert to_accelerator(entry).peak_flops == 312e12
    assert to_accelerator(entry).power_watts == 400
    assert to_accelerator(find("tpu-v5e")).power_watts == 0
    assert [training_precision(find(name)) for name in ("a100", "v100", "epyc-7763")] == [
        "bf16",
        "fp16",
        "fp32",
    ]


def test_a_rate_that_is_not_published_is_not_guessed() -> None:
    with pytest.raises(InputError, match="v100-sxm2-16gb has no rate for 'bf16'") as caught:
        to_accelerator(find("v100"), "bf16")
    assert "fp16" in str(caught.value.hint)


def test_a_machine_has_the_figures_of_its_instance() -> None:
    machine = machine_from(CATALOGUE.instance("p4d.24xlarge"), 4)
    assert (machine.num_devices, machine.devices_per_node) == (32, 8)
    assert machine.in_node.bandwidth_bytes_per_second == 300e9
    assert machine.between_nodes.bandwidth_bytes_per_second == 50e9  # 400 Gb/s
    assert machine.between_nodes.latency_seconds == pytest.approx(15e-6)
    assert machine.price_per_device_hour == pytest.approx(21.957642 / 8)


def test_spot_prices() -> None:
    instance = CATALOGUE.instance("p5.48xlarge")
    assert machine_from(instance, 1, spot=True).price_per_device_hour == pytest.approx(21.6229 / 8)
    assert machine_from(CATALOGUE.instance("p4d.24xlarge"), 1, spot=True).price_per_device_hour is None


def test_processors_exchange_through_memory() -> None:
    machine = machine_from(CATALOGUE.instance("hb120rs_v2"), 2)
    assert machine.device.peak_flops == 4.608e12
    assert machine.in_node.bandwidth_bytes_per_second == pytest.approx(204.8e9 / 2)


def test_without_a_network_an_instance_works_alone() -> None:
    alone = CATALOGUE.instance("gpu_8x_a100")
    assert machine_from(alone, 1).num_nodes == 1
    with pytest.raises(InputError, match="its network is not published, so it works alone"):
        machine_from(alone, 2)


def test_a_network_joins_only_so_many() -> None:
    host = CATALOGUE.instance("ct6e-standard-4t")
    assert most_nodes(host) == 64
    with pytest.raises(InputError, match="at most 64"):
        machine_from(host, 65)
    with pytest.raises(InputError, match="num_nodes >= 1"):
        machine_from(host, 0)
