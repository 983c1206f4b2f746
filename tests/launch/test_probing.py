"""The probe on this machine, with real workers: what it finds hangs together."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.compute.engines.local import LocalEngine
from leptonai.compute.measured import Measured, RateSample, TransferFit
from leptonai.compute.measured_file import read_measured, write_measured
from leptonai.compute.probe_cases import KernelCase, halving, kernel_cases, key_of, layer_products
from leptonai.compute.steady_timing import time_until_steady
from leptonai.core.errors import Fault, InputError
from leptonai.launch.probe_disk import probe_disk
from leptonai.launch.probe_findings import Setting, with_links
from leptonai.launch.probe_messages import MESSAGE_BYTES, QUICK_MESSAGE_BYTES
from leptonai.launch.probe_worker import time_kernels
from leptonai.launch.probing import Probed, probe_machine, settings_for

NUM_CORES = len(os.sched_getaffinity(0))


class Told:
    """Progress as it was told."""

    def __init__(self) -> None:
        self.shares: list[float] = []

    def __call__(self, share: float, doing: str) -> None:
        self.shares.append(share)


@pytest.fixture(scope="module")
def found(engine: LocalEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Probed, Told]]:
    told, directory = Told(), tmp_path_factory.mktemp("disk")
    yield (
        probe_machine(seconds=4.0, quick=True, directory=directory, engine=engine, progress=told),
        told,
    )
    assert list(directory.iterdir()) == []


def samples_of(measured: Measured, **wanted: object) -> list[RateSample]:
    return [
        each
        for each in measured.kernels
        if all(getattr(each, name) == value for name, value in wanted.items())
    ]


def test_every_way_of_using_the_machine_was_measured(found: tuple[Probed, Told]) -> None:
    measured = found[0].measured
    for setting in settings_for(NUM_CORES):
        if "kernels" in setting.parts:
            kinds = {
                each.kind for each in samples_of(measured, threads=setting.threads, num_busy=setting.num_busy)
            }
            if setting.threads > 1:  # where its threads waited for cores it was left out, and is named
                kinds |= {each.kind for each in found[0].skipped if each.why == "disturbed"}
            assert kinds >= {"matmul", "convolution", "elementwise"}
    assert measured.cores == NUM_CORES
    assert dict(measured.versions).keys() == {"torch"}
    assert {name for name, _ in measured.start_seconds} == {"engine", "pytorch"}
    assert 1e-7 < dict(measured.call_seconds)["pytorch"] < 1e-2


def test_larger_kernels_take_longer_and_rates_are_those_of_a_machine(found: tuple[Probed, Told]) -> None:
    alone = samples_of(found[0].measured, threads=1, num_busy=1, precision="float32")
    adds = sorted((each.dims[0], each.seconds) for each in alone if each.kind == "elementwise")
    assert len(adds) >= 2
    assert adds[0][1] < adds[-1][1]
    for each in alone:
        if each.kind == "matmul":
            flops = KernelCase(kind="matmul", dims=each.dims).flops
            assert 1e7 < flops / each.seconds < 1e13
    for _, rate in found[0].measured.memory_bytes_per_second:
        assert 1e8 < rate < 1e13


def test_messages_were_fitted(found: tuple[Probed, Told]) -> None:
    fits = {(fit.kind, fit.num_workers): fit for fit in found[0].measured.transfers}
    for kind in ("all-reduce", "broadcast", "shared memory", "loopback"):
        disturbed = [each for each in found[0].skipped if (each.kind, each.why) == (kind, "disturbed")]
        assert ((kind, 2) in fits) != any(each.setting == "2 workers" for each in disturbed)
        if (kind, 2) not in fits:  # the machine was too busy for it, which is said
            continue
        fit = fits[kind, 2]
        left_out = {each.size[0] for each in found[0].skipped if each.kind == kind}
        assert {size for size, _ in fit.samples} | left_out >= set(QUICK_MESSAGE_BYTES)
        assert len(fit.samples) >= 2
        assert 1e6 < fit.bandwidth_bytes_per_second < 1e13
        assert 0 <= fit.latency_seconds < 1.0


def test_the_disk_was_measured_and_spreads_are_told(found: tuple[Probed, Told]) -> None:
    probed = found[0]
    assert probed.measured.disk_write_bytes_per_second > 0
    assert probed.measured.disk_read_bytes_per_second > 0
    assert probed.measured.sync_seconds > 0
    for setting, kinds in {
        "1 process x 1 thread": {"matmul", "convolution", "memory", "call"},
        f"{max(2, NUM_CORES)} processes x 1 thread": {"all-reduce", "broadcast"},
    }.items():
        assert {each.kind for each in probed.spreads if each.setting == setting} >= kinds
    assert all(each.value >= 0 for each in probed.spreads)


def test_each_kernel_was_timed_or_is_named_as_left_out(found: tuple[Probed, Told]) -> None:
    cases = len(kernel_cases(quick=True))
    settings = [each for each in settings_for(NUM_CORES) if "kernels" in each.parts]
    timed = sum(each.kind not in ("call", "pass") for each in found[0].measured.kernels)
    skipped = sum(each.precision != "" for each in found[0].skipped)
    assert timed + skipped == cases * len(settings)
    assert {each.setting for each in found[0].skipped} <= {each.words for each in settings_for(NUM_CORES)}


def test_progress_goes_on_to_the_end(found: tuple[Probed, Told]) -> None:
    shares = found[1].shares
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert len(shares) > 20


def test_what_was_found_is_read_back_from_its_file(found: tuple[Probed, Told], tmp_path: Path) -> None:
    path = tmp_path / "cluster.measured.yaml"
    write_measured(path, found[0].measured)
    assert read_measured(path) == found[0].measured


def test_too_little_time_is_refused() -> None:
    with pytest.raises(InputError, match="2 s or more, found 1"):
        probe_machine(seconds=1.0)


def test_a_worker_that_fails_ends_the_probe(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    only = (Setting(threads=1, num_busy=2, parts=("messages",)),)
    monkeypatch.setattr("leptonai.launch.probing.settings_for", lambda num_cores: only)
    monkeypatch.setattr("leptonai.launch.probing.MESSAGE_BYTES", (1,))  # too small a memory to share
    with pytest.raises(Fault):
        probe_machine(seconds=2.0, quick=True, engine=engine)


def test_a_disk_that_is_nearly_full_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leptonai.launch.probe_disk.SPARE_BYTES", 2**62)
    with pytest.raises(Fault, match="too little space"):
        probe_disk(tmp_path, quick=True)
    assert list(tmp_path.iterdir()) == []


def test_links_between_nodes_of_this_machine_are_loopback() -> None:
    loopback = TransferFit(kind="loopback", latency_seconds=5e-5, bandwidth_bytes_per_second=1e9)
    measured = Measured(at_seconds=0.0, cores=2, transfers=(loopback,))
    link = with_links(measured, [("a", "b")]).transfers[1]
    assert (link.kind, link.ends, link.seconds(1e6)) == ("link", ("a", "b"), loopback.seconds(1e6))
    assert with_links(Measured(at_seconds=0.0, cores=1), [("a", "b")]).transfers == ()


@pytest.mark.parametrize("num_cores", [1, 2, 3, 4, 8, 64])
def test_settings_fit_the_cores_and_messages_are_measured_for_each_number_of_workers_once(
    num_cores: int,
) -> None:
    settings = settings_for(num_cores)
    assert all(each.threads * each.num_busy <= max(2, num_cores) for each in settings)
    with_messages = [each.num_busy for each in settings if "messages" in each.parts]
    assert sorted(set(with_messages)) == sorted(with_messages)
    assert 2 in with_messages
    assert max(num_cores, 2) in with_messages


@pytest.mark.parametrize("quick", [False, True])
def test_losing_the_tail_loses_detail_and_no_kind_or_precision(quick: bool) -> None:
    cases = kernel_cases(quick=quick)
    assert len(set(cases)) == len(cases)
    families = {case.family for case in cases}
    assert {precision for _, precision, _ in families} == {"float32", "bfloat16"}
    assert {case.family for case in cases[: len(families)]} == families
    # The ends of each family come before the detail of any.
    flops: dict[tuple[str, str, bool], list[float]] = {}
    for case in cases:
        flops.setdefault(case.family, []).append(case.flops)
    for found in flops.values():
        assert {min(found), max(found)} <= set(found[:3])
    # Half of them hold a good part of every family.
    half = Counter(case.family for case in cases[: len(cases) // 2])
    if not quick:
        assert all(half[family] >= len(found) // 4 for family, found in flops.items())


class Clocked:
    """Kernels whose calls move a clock; ``slow`` adds to those of some cases."""

    name = "clocked"

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_seconds = 0.0
        self.slow: Callable[[KernelCase], float] = lambda case: 0.0
        timed = partial(time_until_steady, now=self.now)
        monkeypatch.setattr("leptonai.launch.probe_worker.time_until_steady", timed)

    @property
    def versions(self) -> dict[str, str]:
        return {}

    def now(self) -> float:
        return self.now_seconds

    def empty(self) -> None:
        """No call costs anything but its kernel."""

    def chain(self, length: int) -> NoReturn:
        raise NotImplementedError

    def prepare(self, case: KernelCase) -> tuple[Callable[[], object], int]:
        def call() -> None:
            self.now_seconds += 1e-6 + case.flops / 1e10 + self.slow(case)

        return call, 1


def test_a_probe_without_time_names_what_it_left_out_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels, cases = Clocked(monkeypatch), kernel_cases()
    kernels.slow = lambda case: 0.04  # a machine of which little is left
    found = time_kernels(kernels, cases, 2.0, now=kernels.now)
    assert len(found["timed"]) + len(found["skipped"]) == len(cases)
    named = {(each["kind"], each["precision"], each["backward"]) for each in found["timed"]}
    assert named == {case.family for case in cases}
    assert (
        min(Counter((each["kind"], each["precision"], each["backward"]) for each in found["timed"]).values())
        > 1
    )
    assert {each["why"] for each in found["skipped"]} == {"no time left", "too slow"}
    assert kernels.now_seconds < 8.0  # two sizes of each family, three calls of 40 ms and more each


def test_calls_whose_threads_wait_for_cores_are_timed_again_and_then_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernels, cases = Clocked(monkeypatch), kernel_cases(quick=True)
    alone = {key_of(*case.family, case.dims): 1e-6 + case.flops / 1e10 for case in cases}
    # Until half a second has passed every call waits for a timeslice; copies wait for ever.
    kernels.slow = lambda case: 8e-3 if kernels.now_seconds < 0.5 or case.kind == "copy" else 0.0
    found = time_kernels(kernels, cases, 30.0, alone=alone, now=kernels.now)
    assert {(each["kind"], each["why"]) for each in found["skipped"]} == {("copy", "disturbed")}
    for each in found["timed"]:
        case = next(
            case
            for case in cases
            if (*case.family, list(case.dims))
            == (each["kind"], each["precision"], each["backward"], each["dims"])
        )
        assert each["seconds"] <= 2 * (1e-6 + case.flops / 1e10) + 1e-4
    assert len(found["timed"]) + len(found["skipped"]) == len(cases)


@given(st.integers(0, 60))
def test_halving_names_every_place_once(length: int) -> None:
    assert sorted(halving(length)) == list(range(length))


def test_products_of_a_layer_do_the_same_work() -> None:
    assert len({case.flops for case in layer_products(32, 784, 10)}) == 1
    assert max(MESSAGE_BYTES) >= max(QUICK_MESSAGE_BYTES)
