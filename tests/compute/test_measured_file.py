"""The measured cluster file: what is written is what is read, and nothing else is overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.compute.measured import Measured, RateSample, TransferFit
from leptonai.compute.measured_file import (
    THIS_MACHINE,
    MeasuredClusterFile,
    check_replaceable,
    measured_text,
    read_measured,
    write_measured,
)
from leptonai.compute.measured_section import kernel_text, parse_kernel
from leptonai.core.errors import InputError
from leptonai.core.files import parse_yaml

CLUSTER = """# the lab
nodes:
  - name: left   # the old one
  - {name: right, address: 10.0.0.7}
links:
  - {between: [left, right], bandwidth: 10Gb/s, latency: 50us}
workers: 2
"""

seconds = st.floats(1e-9, 1e4)
rates = st.floats(1e3, 1e15)
names = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=12)
samples = st.lists(st.tuples(st.integers(0, 2**40).map(float), seconds), max_size=4).map(tuple)
kernels = st.builds(
    RateSample,
    kind=st.sampled_from(["matmul", "batched_matmul", "convolution", "elementwise"]),
    dims=st.lists(st.integers(1, 10**9), min_size=1, max_size=6).map(tuple),
    seconds=seconds,
    precision=st.sampled_from(["float32", "bfloat16"]),
    threads=st.integers(1, 512),
    num_busy=st.integers(1, 512),
    backward=st.booleans(),
)
fits = st.builds(
    TransferFit,
    kind=st.sampled_from(["all-reduce", "loopback", "shared memory"]),
    latency_seconds=st.one_of(st.just(0.0), seconds),
    bandwidth_bytes_per_second=rates,
    num_workers=st.integers(1, 64),
    ends=st.one_of(st.just(()), st.tuples(names, names)),
    error=st.floats(0, 10),
    samples=samples,
)
pairs = st.dictionaries(names, seconds, max_size=3).map(lambda each: tuple(each.items()))
measurements = st.builds(
    Measured,
    at_seconds=st.integers(0, 2**32).map(float),
    cores=st.integers(1, 1024),
    kernels=st.lists(kernels, max_size=4).map(tuple),
    transfers=st.lists(fits, max_size=3).map(tuple),
    memory_bytes_per_second=st.lists(st.tuples(st.integers(1, 64), rates), max_size=3).map(tuple),
    call_seconds=pairs,
    disk_write_bytes_per_second=rates,
    disk_read_bytes_per_second=rates,
    sync_seconds=seconds,
    start_seconds=pairs,
    versions=st.dictionaries(names, names, max_size=3).map(lambda each: tuple(each.items())),
)

SMALL = Measured(
    at_seconds=1_795_464_122.0,
    cores=2,
    kernels=(RateSample(kind="matmul", dims=(128, 256, 64), seconds=1.042e-4, num_busy=2),),
    transfers=(
        TransferFit(
            kind="all-reduce",
            latency_seconds=5e-5,
            bandwidth_bytes_per_second=1e9,
            error=0.02,
            samples=((4096.0, 5.4e-5), (1048576.0, 1.1e-3)),
        ),
    ),
    memory_bytes_per_second=((1, 1.2e10), (2, 2e10)),
    call_seconds=(("pytorch", 6e-6),),
    versions=(("torch", "2.13"),),
)


@given(measurements)
def test_what_is_written_is_read(measured: Measured) -> None:
    text = measured_text(measured)
    assert parse_yaml(text, where="m", model=MeasuredClusterFile).measured.to_measured() == measured


@given(kernels)
def test_a_kernel_is_one_line(sample: RateSample) -> None:
    assert parse_kernel(kernel_text(sample)) == sample
    assert "\n" not in kernel_text(sample)


def test_the_cluster_is_kept_to_the_letter_and_measurements_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "cluster.measured.yaml"
    write_measured(path, SMALL, cluster_text=CLUSTER)
    assert path.read_text().startswith(CLUSTER)
    assert read_measured(path) == SMALL
    later = Measured(at_seconds=SMALL.at_seconds + 60, cores=2)
    write_measured(path, later, cluster_text=path.read_text())
    assert path.read_text().startswith(CLUSTER)
    assert path.read_text().count("measured:") == 1
    assert read_measured(path) == later
    cluster = parse_yaml(path.read_text(), where="c", model=MeasuredClusterFile).to_cluster(available_cores=2)
    assert [node.name for node in cluster.nodes] == ["left", "right"]
    assert cluster.links[0].latency_seconds == 50e-6


def test_keys_after_the_measurements_are_kept() -> None:
    text = THIS_MACHINE + "measured:\n  at: 2026-11-23\n  cores: 1\n\n# how many\nworkers: 2\n"
    again = measured_text(SMALL, cluster_text=text)
    found = parse_yaml(again, where="c", model=MeasuredClusterFile)
    assert (found.workers.count, found.measured.cores) == (2, 2)


def test_nothing_else_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(CLUSTER)
    with pytest.raises(InputError, match="is not a file of measurements, so it is not overwritten"):
        write_measured(path, SMALL)
    assert path.read_text() == CLUSTER
    with pytest.raises(InputError, match="not overwritten"):
        check_replaceable(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        check_replaceable(tmp_path / "gone" / "m.yaml")
    path.write_text("text: |\n  x\n# measured:\nother: 1\n")
    with pytest.raises(InputError, match="not overwritten"):
        write_measured(path, SMALL)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["cluster.yaml"]


def test_a_cluster_in_braces_cannot_take_a_section() -> None:
    with pytest.raises(InputError, match="cannot be added to the cluster file"):
        measured_text(SMALL, cluster_text="{nodes: [{name: a}]}\n")


def test_a_file_without_measurements_says_how_to_get_them(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(CLUSTER)
    with pytest.raises(InputError, match="holds no measurements") as caught:
        read_measured(path)
    assert "lepton cluster probe" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("104.2us", "104.2", "has no unit"),
        ("104.2us", "0us", "expected seconds > 0"),
        ("threads=1", "threads=0", "threads and busy >= 1"),
        ("matmul 128x256x64", "matmul 128*256*64", "is not a timed kernel"),
        ("cores: 2", "cores: 0", "cores"),
        ("cores: 2", "cors: 2", "did you mean 'cores'"),
        ("bandwidth: 1GB/s", "bandwidth: 0GB/s", "bandwidth"),
        ("bandwidth: 1GB/s", "bandwidth: 1e9", "has no unit"),
        ("4096B 54us", "4096B54us", "is not bytes and a time"),
        ('"2026-11', '"1926-31', "is no moment"),
        ("error: 0.02", "error: -0.02", "error"),
    ],
)
def test_each_mistake_is_told_with_its_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "m.yaml"
    write_measured(path, SMALL)
    text = path.read_text()
    assert text.count(old) == 1, text
    line = text[: text.index(old)].count("\n") + 1
    path.write_text(text.replace(old, new))
    with pytest.raises(InputError) as caught:
        read_measured(path)
    assert said in str(caught.value)
    assert f"{path}:{line}:" in str(caught.value)
