"""A recorded interleaving runs again to the last bit, and says so when it cannot."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Iterator, Sequence
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
from leptonai.training.parameter_server.replay import Replayed, replay
from leptonai.training.parameter_server.work import Piece

_spec = importlib.util.spec_from_file_location("interleavings", Path(__file__).with_name("interleavings.py"))
assert _spec is not None
assert _spec.loader is not None
tiny = importlib.util.module_from_spec(_spec)
sys.modules["interleavings"] = tiny
_spec.loader.exec_module(tiny)

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


def live(optimizer: Optimizer, *, seed: int, mode: str = "asp", kills: int = 0, **options: Any) -> list[Line]:
    """The record of a run in miniature."""
    shards = tiny.new_shards(optimizer, initial(), num_slots=WORKERS, **options)
    run = tiny.Run(
        shards, tiny.tiny_work, seed=seed, mode=mode, num_workers=WORKERS,
        num_deals=20 if mode == "asp" else 6, pieces=one_piece, kills=kills,
    )  # fmt: skip
    try:
        lines: list[Line] = run.go()
        return lines
    finally:
        tiny.close(shards)


def again(recording: Recording, optimizer: Optimizer, **options: Any) -> Replayed:
    shards = tiny.new_shards(optimizer, initial(), num_slots=WORKERS, **options)
    try:
        return replay(recording, shards, tiny.tiny_work)
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
@settings(max_examples=60, deadline=None)
def test_any_interleaving_runs_again_to_the_last_bit(
    seed: int, optimizer: Optimizer, mode: str, kills: int, compensation: float, scaled: bool
) -> None:
    options = {"delay_compensation": compensation, "staleness_scaled_lr": scaled}
    recording = recording_of(live(optimizer, seed=seed, mode=mode, kills=kills, **options))
    assert recording.ended is not None
    replayed = again(recording, optimizer, **options)
    assert replayed.same
    assert (replayed.digests, replayed.versions) == (recording.ended.digests, recording.ended.versions)
