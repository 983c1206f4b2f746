"""A recorded interleaving runs again to the last bit, and says so when it cannot."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonai.core.errors import Fault, InputError
from leptonai.training.optimizers import SGD, Adagrad, Adam, AdamW, Optimizer
from leptonai.training.parameter_server.interleaving import (
    Applied,
    Computed,
    Ended,
    InterleavingWriter,
    Line,
    Recording,
    decode_runs,
    encode_runs,
    line_text,
    read_interleaving,
    recording_of,
)
from leptonai.training.parameter_server.numpy_kernels import NumpyKernels
from leptonai.training.parameter_server.replay import Replayed, replay
from leptonai.training.parameter_server.work import Piece
from tests.training.parameter_server import interleavings as tiny

OPTIMIZERS: list[Optimizer] = [
    SGD(lr=0.1),
    SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    Adam(),
    AdamW(),
    Adagrad(lr=0.1),
]
WORKERS = 3


def initial() -> list[Any]:
    rng = np.random.default_rng(7)
    return [rng.normal(size=length).astype(np.float32) for length in tiny.LENGTHS]


def one_piece(number: int) -> tuple[Piece, ...]:
    return (Piece(step=number, start=0, stop=4),)


def shards_for(optimizer: Optimizer, **options: Any) -> list[Any]:
    kernels = NumpyKernels(optimizer)
    return tiny.new_shards(optimizer, initial(), num_slots=WORKERS, kernels=kernels, **options)


def live(optimizer: Optimizer, *, seed: int, mode: str = "asp", kills: int = 0, **options: Any) -> list[Line]:
    """The record of a run in miniature."""
    shards = shards_for(optimizer, **options)
    run = tiny.Run(
        shards, tiny.tiny_work, seed=seed, mode=mode, num_workers=WORKERS,
        num_deals=20 if mode == "asp" else 6, pieces=one_piece, kills=kills,
    )  # fmt: skip
    try:
        return run.go()
    finally:
        tiny.close(shards)


def again(
    recording: Recording, optimizer: Optimizer, work: Callable[[Any], None] = tiny.tiny_work, **options: Any
) -> Replayed:
    shards = shards_for(optimizer, **options)
    try:
        return replay(recording, shards, work)
    finally:
        tiny.close(shards)


@given(
    seed=st.integers(0, 1 << 32),
    optimizer=st.sampled_from(OPTIMIZERS),
    mode=st.sampled_from(["asp", "bsp", "backup"]),
    kills=st.integers(0, 2),
    compensation=st.sampled_from([0.0, 0.5]),
    scaled=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_any_interleaving_runs_again_to_the_last_bit(
    seed: int, optimizer: Optimizer, mode: str, kills: int, compensation: float, scaled: bool
) -> None:
    options = {"delay_compensation": compensation, "staleness_scaled_lr": scaled}
    recording = recording_of(live(optimizer, seed=seed, mode=mode, kills=kills, **options))
    assert recording.ended is not None
    replayed = again(recording, optimizer, **options)
    assert replayed.same
    assert (replayed.digests, replayed.versions) == (recording.ended.digests, recording.ended.versions)


def record(seed: int = 1, **changes: Any) -> Recording:
    return recording_of(live(SGD(lr=0.1, momentum=0.9), seed=seed, **changes))


def test_the_runs_in_miniature_are_as_tangled_as_real_ones() -> None:
    recordings = [record(seed, mode=mode, kills=2) for seed in range(6) for mode in ("asp", "backup")]
    computed = [line for recording in recordings for line in recording.computed]
    applied = [line for recording in recordings for line in recording.applied]
    assert any(len(runs) > 1 for line in computed for pull in line.pulls for runs in pull), "torn reads"
    assert any(line.incarnation > 0 for line in computed), "restarted workers"
    assert any(not line.pushed for line in computed), "refused by the worker"
    assert any(line.versions == (0, 0) and not line.dropped for line in applied), "refused by the servers"
    assert any(line.dropped for line in applied), "too late"
    assert any(line.versions[0] != line.versions[1] for line in applied), "shards on their own"


def test_the_file_gives_back_what_was_written_but_for_a_torn_last_line(tmp_path: Path) -> None:
    lines = live(Adam(), seed=2, kills=1)
    path = tmp_path / "interleaving.jsonl"
    writer = InterleavingWriter(path, lines[0])  # type: ignore[arg-type]
    for line in lines[1:]:
        writer.write(line)
    writer.close()
    assert read_interleaving(path) == recording_of(lines)
    with pytest.raises(Fault, match="cannot be recorded"):
        InterleavingWriter(path, lines[0])  # type: ignore[arg-type]
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert read_interleaving(path) == dataclasses.replace(recording_of(lines), ended=None)
    texts = whole.split(b"\n")
    path.write_bytes(b"\n".join([*texts[:3], texts[3][:20], *texts[4:]]))
    with pytest.raises(Fault, match=r"interleaving\.jsonl:4: the interleaving is damaged"):
        read_interleaving(path)


def test_a_file_that_is_no_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "interleaving.jsonl"
    with pytest.raises(InputError, match="no interleaving to read"):
        read_interleaving(path)
    path.write_text("")
    with pytest.raises(InputError, match="no header"):
        read_interleaving(path)
    began = dataclasses.replace(record().began, format=9)
    path.write_text(line_text(began) + "\n")
    with pytest.raises(InputError, match="format 9"):
        read_interleaving(path)


@given(st.lists(st.integers(0, 3), max_size=30))
def test_runs_of_equal_numbers_and_back(values: list[int]) -> None:
    runs = encode_runs(np.array(values, np.uint64))
    assert decode_runs(runs).tolist() == values
    assert all(left != right for (left, _), (right, _) in itertools.pairwise(runs))


def test_a_run_that_broke_off_runs_again_as_far_as_its_record_goes() -> None:
    lines = live(Adam(), seed=3)
    for length in (1, 5, 12, len(lines) - 1):
        replayed = again(recording_of(lines[:length]), Adam())
        assert replayed.same is None
        applied = [line for line in lines[:length] if isinstance(line, Applied)]
        assert sum(replayed.versions) <= sum(version > 0 for line in applied for version in line.versions)
    assert sum(replayed.versions) > 10


def test_lines_that_are_missing_are_said_to_be() -> None:
    lines = live(SGD(lr=0.1, momentum=0.9), seed=1)
    for kind in (Applied, Computed):
        cut = next(place for place, line in enumerate(lines) if isinstance(line, kind) and place > 8)
        with pytest.raises(Fault, match=r"the record is incomplete: .*shard [01]"):
            again(recording_of(lines[:cut] + lines[cut + 1 :]), SGD(lr=0.1, momentum=0.9))


def test_where_the_code_has_changed_the_first_difference_is_named() -> None:
    recording = record()
    places = sorted((line.deal.deal, line.deal.worker) for line in recording.computed if line.pushed)

    def changed(seat: Any) -> None:
        class Link:
            def __init__(self, inner: Any) -> None:
                self._inner = inner

            def __getattr__(self, name: str) -> Any:
                return getattr(self._inner, name)

            def prepare(self, offer: Any) -> None:
                if offer.sequence >= places[4][0]:
                    self.gradients[0] += 1.0
                self._inner.prepare(offer)

        seat.links = [Link(link) for link in seat.links]
        tiny.tiny_work(seat)

    deal, worker = places[4]
    with pytest.raises(Fault, match=f"parts from the record at worker {worker}, deal {deal}: what is pushed"):
        again(recording, SGD(lr=0.1, momentum=0.9), changed)
    unchecked = [dataclasses.replace(line, checksums=()) for line in recording.computed]
    blind = dataclasses.replace(recording, computed=tuple(unchecked))
    assert again(blind, SGD(lr=0.1, momentum=0.9), changed).same is False


def test_code_that_reads_or_pushes_otherwise_is_found_out() -> None:
    def twice(seat: Any) -> None:
        for link in seat.links:
            link.pull = lambda pull=link.pull, **words: (pull(**words), pull(**words))[1]
        tiny.tiny_work(seat)

    with pytest.raises(Fault, match="pulls more often"):
        again(record(), SGD(lr=0.1, momentum=0.9), twice)

    def silent(seat: Any) -> None:
        while "compute" in seat.receive():
            for link in seat.links:
                link.pull(deadline_seconds=1.0)

    with pytest.raises(Fault, match="did not push as it did then"):
        again(record(), SGD(lr=0.1, momentum=0.9), silent)

    def broken(seat: Any) -> None:
        seat.receive()
        raise ValueError("of the model's own")

    with pytest.raises(ValueError, match="of the model's own"):
        again(record(), SGD(lr=0.1, momentum=0.9), broken)


def test_another_beginning_is_refused() -> None:
    recording, sgd = record(), SGD(lr=0.1, momentum=0.9)
    elsewhere = dataclasses.replace(recording.began, digests=("0" * 64,) * 2)
    with pytest.raises(InputError, match="parameters to begin with are not those"):
        again(dataclasses.replace(recording, began=elsewhere), sgd)
    other = dataclasses.replace(recording.began, kernels="other", environment=("torch 1.0",))
    with pytest.raises(InputError, match="stepped with other kernels") as caught:
        again(dataclasses.replace(recording, began=other), sgd)
    assert "torch 1.0" in str(caught.value)
    longer = dataclasses.replace(recording.began, lengths=(64, 80))
    with pytest.raises(InputError, match="not laid out as in the record"):
        again(dataclasses.replace(recording, began=longer), sgd)
    crowd = dataclasses.replace(recording.began, num_slots=9)
    with pytest.raises(InputError, match="shards for 9 workers"):
        again(dataclasses.replace(recording, began=crowd), sgd)
    assert isinstance(recording.ended, Ended)
