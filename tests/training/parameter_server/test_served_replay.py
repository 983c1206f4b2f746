"""Runs of real learners in every mode, recorded while a seed mixes their order, and run again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch import nn

from leptonai.training.data.dataset import Arrays, Data
from leptonai.training.job import TrainJob
from leptonai.training.optimizers import SGD, Adam
from leptonai.training.parameter_server.codecs.base import Codec
from leptonai.training.parameter_server.codecs.parse import parse_codec
from leptonai.training.parameter_server.consistency import is_local, parse_consistency
from leptonai.training.parameter_server.flat import FlatLearner
from leptonai.training.parameter_server.interleaving import Computed, Recording, recording_of
from leptonai.training.parameter_server.layout import lay_out
from leptonai.training.parameter_server.replay import Replayed, replay
from leptonai.training.parameter_server.served_replay import served_work
from leptonai.training.parameter_server.work import Piece
from leptonai.training.pytorch.flat import TorchFlatLearner
from leptonai.training.pytorch.passes import TorchOptions
from tests.training.parameter_server import interleavings as tiny

WORKERS, STEPS, BATCH = 3, 8, 12
rng = np.random.default_rng(3)
LABELS = rng.integers(0, 3, 64)
DATA = Data(train=Arrays((rng.normal(size=(64, 5)) + LABELS[:, None]).astype(np.float32), LABELS))


def net() -> nn.Module:
    layers = [nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3)]
    return nn.Sequential(*layers)


JOB = TrainJob(
    model=net, data=DATA, loss="cross_entropy", optimizer=Adam(lr=0.01), steps=STEPS, global_batch_size=BATCH
)


class Case:
    """A run in one mode."""

    def __init__(self, mode: str, codec: str, make_learner: Callable[[], FlatLearner]) -> None:
        self.mode, self._codec, self._make_learner = mode, codec, make_learner
        learner = make_learner()
        self.tensors = learner.tensors
        self.layout = lay_out(self.tensors, 2)
        self.initial = [np.zeros(length, np.float32) for length in self.layout.lengths]
        for index, values in enumerate(learner.initial()):
            self.layout.scatter(index, values, self.initial)

    def _codecs(self, worker: int) -> Callable[[int], Codec]:
        return lambda shard: parse_codec(self._codec, seed=worker)

    def _decode(self, number: int, payload: memoryview, out: Any) -> None:
        parse_codec(self._codec).decode(payload, out)

    def work(self) -> Callable[[Any], None]:
        return served_work(
            job=JOB, data=DATA, make_learner=self._make_learner, layout=self.layout, num_workers=WORKERS,
            base_learning_rate=0.05, make_codec=self._codecs if self._codec else None,
        )  # fmt: skip

    def shards(self) -> list[Any]:
        local = is_local(parse_consistency(self.mode))
        optimizer = SGD(lr=1.0, momentum=0.9, nesterov=True) if local else Adam(lr=0.05)
        decode = self._decode if self._codec else None
        return tiny.new_shards(optimizer, self.initial, num_slots=WORKERS, decode=decode)

    def pieces(self, number: int) -> tuple[Piece, ...]:
        count = 3 if is_local(parse_consistency(self.mode)) else 1
        third = BATCH // WORKERS * (number % WORKERS)
        return tuple(
            Piece(step=(number + place) % STEPS, start=third, stop=third + BATCH // WORKERS)
            for place in range(count)
        )

    def live(self, seed: int, kills: int) -> Recording:
        shards = self.shards()
        grouped = self.mode not in ("asp", "async_diloco(3)", "elastic_averaging(3)")
        run = tiny.Run(
            shards, self.work(), seed=seed, mode=self.mode, num_workers=WORKERS, num_deals=5 if grouped else 14,
            pieces=self.pieces, kills=kills, tensors=self.tensors, watched=True,
        )  # fmt: skip
        try:
            return recording_of(run.go())
        finally:
            tiny.close(shards)

    def again(self, recording: Recording) -> Replayed:
        shards = self.shards()
        try:
            return replay(recording, shards, self.work())
        finally:
            tiny.close(shards)


def torch_learner() -> FlatLearner:
    return TorchFlatLearner(JOB, TorchOptions())


@pytest.mark.parametrize(
    ("mode", "codec"),
    [
        ("asp", ""),
        ("asp", "int8"),
        ("bsp", ""),
        ("backup(1)", ""),
        ("local_sgd(3)", ""),
        ("diloco(3)", "int8"),
        ("streaming_diloco(3, fragments=2, overlap=1)", "int4"),
        ("async_diloco(3)", ""),
        ("elastic_averaging(3)", ""),
    ],
)
def test_torch_workers_in_every_mode_run_again_to_the_last_bit(mode: str, codec: str) -> None:
    case = Case(mode, codec, torch_learner)
    for seed in range(2):
        recording = case.live(seed, kills=seed)
        assert recording.ended is not None
        assert max(recording.ended.versions) >= 5
        assert case.again(recording).same


def test_buffers_and_draws_of_each_worker_count() -> None:
    """With another worker's pieces the end would differ: the equality above is not by chance."""
    case = Case("asp", "", torch_learner)
    recording = case.live(5, kills=0)
    assert case.again(recording).digests == case.again(recording).digests
    changed = Recording(
        began=recording.began, applied=recording.applied, ended=recording.ended,
        computed=tuple(_swapped(line) for line in recording.computed),
    )  # fmt: skip
    assert case.again(changed).same is False


def _swapped(line: Computed) -> Computed:
    """Its piece one example shorter."""
    import dataclasses

    (piece,) = line.deal.pieces
    shorter = dataclasses.replace(piece, stop=piece.stop - 1)
    return dataclasses.replace(line, deal=dataclasses.replace(line.deal, pieces=(shorter,)))
