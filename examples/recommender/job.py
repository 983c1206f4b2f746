"""Which of 20 million things will a person click? Embeddings in a sparse table, a small network on top.

The clicks are made up, but the same everywhere: people and things have hidden tastes, a click is likely where these
agree, and more likely in one mood than in another: everybody has one for each of a thousand days, a row each. Popular
things turn up far more often than others (Zipf's law), so a baseline that knows each thing's popularity does well; only
what the embeddings learn of tastes does better.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from leptonai import Adam, Data, Evaluate, TrainJob
from leptonai.training.data.dataset import Arrays
from leptonai.training.parameter_server.settings import ParameterServer
from leptonai.training.parameter_server.tables.spec import RowAdagrad, Table
from leptonai.training.pytorch.embedding import ShardedEmbedding

NUM_ROWS = 20_000_000
WIDTH = 64
NUM_PEOPLE, NUM_THINGS, NUM_TASTES = 20_000, 20_000, 8
NUM_DAYS = 1_000
NUM_CLICKS, NUM_TEST = 3_000_000, 100_000

TABLE = Table(name="embeddings", width=WIDTH, num_rows=NUM_ROWS, rule=RowAdagrad(lr=0.05), init_scale=0.05)


class Recommender(nn.Module):
    """Ids (B, 3) of a person, a thing and that person's day to the logit (B, 1) of a click."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = ShardedEmbedding(TABLE)
        self.network = nn.Sequential(nn.Linear(4 * WIDTH, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        person, thing, day = self.rows(ids).unbind(dim=1)
        together = person * thing
        return self.network(torch.cat([person, thing, together, day], dim=1)) + together.sum(1, keepdim=True)


def clicks(num_examples: int, *, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Row ids (N, 3) of people, things and people's days, and whether there was a click (N, 1)."""
    tastes = np.random.default_rng(0)
    people = tastes.normal(size=(NUM_PEOPLE, NUM_TASTES)).astype(np.float32)
    things = tastes.normal(size=(NUM_THINGS, NUM_TASTES)).astype(np.float32)
    popularity = tastes.normal(size=NUM_THINGS).astype(np.float32) * 0.7
    draw = np.random.default_rng([1, seed])
    person = zipf(draw.random(num_examples), NUM_PEOPLE)
    thing = zipf(draw.random(num_examples), NUM_THINGS)
    day = person * NUM_DAYS + draw.integers(0, NUM_DAYS, num_examples)
    mood = hashed(day, 3) / NUM_ROWS - 0.5
    score = np.einsum("nt,nt->n", people[person], things[thing]) * 0.9 + popularity[thing] + mood
    clicked = draw.random(num_examples) < 1 / (1 + np.exp(-score))
    ids = np.stack([hashed(person, 1), hashed(thing, 2), hashed(day, 4)], axis=1)
    return ids, clicked.astype(np.float32)[:, None]


def zipf(uniform: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Numbers below ``count``, the first ones most often: the inverse of a power law's distribution."""
    return np.minimum((count + 1.0) ** uniform - 1.0, count - 1).astype(np.int64)


def hashed(ids: NDArray[np.int64], field: int) -> NDArray[np.int64]:
    """Scatter a field's ids over the whole table, as a hash of raw strings would."""
    mixed = (ids.astype(np.uint64) * np.uint64(8) + np.uint64(field)) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    return ((mixed * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(24)) % np.uint64(NUM_ROWS)).astype(np.int64)


def data() -> Data:
    """The made-up clicks."""
    return Data(train=Arrays(*clicks(NUM_CLICKS, seed=1)), evaluate=Arrays(*clicks(NUM_TEST, seed=2)))


def accuracy(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Per example: whether the more likely answer was right."""
    return ((outputs > 0) == (labels > 0.5)).float().mean(1)


def popularity_accuracy() -> float:
    """Test accuracy of the baseline that answers with how often a thing was clicked in training."""
    ids, clicked = clicks(NUM_CLICKS, seed=1)
    things, places = np.unique(ids[:, 1], return_inverse=True)
    shares = (np.bincount(places, clicked[:, 0]) + 1.0) / (np.bincount(places) + 2.0)
    test_ids, test_clicked = clicks(NUM_TEST, seed=2)
    at = np.minimum(np.searchsorted(things, test_ids[:, 1]), len(things) - 1)
    known = np.where(things[at] == test_ids[:, 1], shares[at], 0.5)
    return float(((known > 0.5) == (test_clicked[:, 0] > 0.5)).mean())


job = TrainJob(
    model=Recommender,
    data=data,
    loss="binary_cross_entropy",
    optimizer=Adam(lr=2e-3),
    epochs=1,
    global_batch_size=2048,
    precision="float32",
    evaluate=Evaluate(batch_size=4096, metrics={"accuracy": accuracy}),
    parameter_server=ParameterServer(consistency="asp"),
)
