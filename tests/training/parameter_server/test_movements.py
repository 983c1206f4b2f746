"""The local modes by hand on two parameters, through worker, link and shard; and how few bytes they push."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.training.learner import Batch, LearnerState
from leptonai.training.optimizers import SGD, AdamW
from leptonai.training.parameter_server.bell import Bell
from leptonai.training.parameter_server.client import Client
from leptonai.training.parameter_server.codecs.base import Codec
from leptonai.training.parameter_server.codecs.parse import mode_codec, parse_codec
from leptonai.training.parameter_server.consistency import (
    Asp,
    AsyncDiloco,
    Backup,
    Bsp,
    Consistency,
    Diloco,
    ElasticAveraging,
    LocalMode,
    LocalSgd,
    Ssp,
    StreamingDiloco,
    consistency_text,
    is_grouped,
)
from leptonai.training.parameter_server.flat import FlatLearner, TensorSpec
from leptonai.training.parameter_server.groups import pieces_per_deal
from leptonai.training.parameter_server.kernels import num_states
from leptonai.training.parameter_server.layout import fragment_range, lay_out
from leptonai.training.parameter_server.local_link import LocalLink
from leptonai.training.parameter_server.local_worker import LocalWorker
from leptonai.training.parameter_server.memory import APPLIED, Header, ShardMemory, ShardShape
from leptonai.training.parameter_server.movements import mix
from leptonai.training.parameter_server.outer import outer_optimizer
from leptonai.training.parameter_server.shard import Outcome, Shard
from leptonai.training.parameter_server.work import Compute

Vector = NDArray[np.float32]
Numbers = tuple[float, ...]


def vector(*values: float) -> Vector:
    return np.array(values, np.float32)


class Mover(FlatLearner):
    """A model of tensors of one size whose local step subtracts what the batch says from each of them."""

    def __init__(self, *sizes: int) -> None:
        self.specs = [TensorSpec(name=f"w{index}", shape=(size,)) for index, size in enumerate(sizes)]
        self.parameters: Sequence[Vector] = []
        self.steps_from: list[list[float]] = []
        """The first number of each tensor as each step began."""

    @property
    def tensors(self) -> Sequence[TensorSpec]:
        return self.specs

    @property
    def weights(self) -> list[float]:
        return [float(tensor[0]) for tensor in self.parameters]

    def initial(self) -> Sequence[Vector]:
        return [np.zeros(spec.num_elements, np.float32) for spec in self.specs]

    def bind(self, parameters: Sequence[Vector], gradients: Sequence[Vector]) -> None:
        self.parameters = parameters

    def refresh(self) -> None:
        """The arrays are the model."""

    def gradient(self, batch: Batch, *, num_examples: int, seed: int) -> float:
        raise NotImplementedError

    def local_step(self, batch: Batch, *, lr_factor: float, seed: int) -> float:
        self.steps_from.append(self.weights)
        for tensor, by in zip(self.parameters, batch, strict=True):
            tensor -= by
        return 0.0

    def evaluate(self, batches: Iterable[Batch]) -> Mapping[str, float]:
        raise NotImplementedError

    def state(self) -> LearnerState:
        raise NotImplementedError

    def restore(self, state: LearnerState) -> None:
        raise NotImplementedError


class Bench:
    """One shard and its workers, in one process: what a worker offers is applied when the test says so."""

    def __init__(self, mode: LocalMode, sizes: Sequence[int], num_workers: int, text: str) -> None:
        self.mode, self.sequences = mode, [0] * num_workers
        self.learners = [Mover(*sizes) for _ in range(num_workers)]
        tensors = self.learners[0].tensors
        layout, rule = lay_out(tensors, 1), outer_optimizer(mode, AdamW())
        self.memory = ShardMemory.create(
            ShardShape(num_elements=layout.lengths[0], num_states=num_states(rule), num_slots=num_workers)
        )
        self.bells = [Bell.create(), Bell.create()]
        self.links = [
            LocalLink(self.memory, slot, server_bell=self.bells[0], worker_bell=self.bells[1], views=False)
            for slot in range(num_workers)
        ]
        codec: Callable[[int], Codec] | None = (lambda _: parse_codec(text)) if text else None
        self.workers = [
            LocalWorker(
                mode, Client([link], tensors, layout, codec=codec, deadline_seconds=5.0), learner,
                num_workers=num_workers,
            )
            for link, learner in zip(self.links, self.learners, strict=True)
        ]  # fmt: skip
        self.shard = Shard(
            self.memory, rule, age_decay=mode.age_decay if isinstance(mode, AsyncDiloco) else 0.0,
            decode=lambda _, payload, out: parse_codec(text).decode(payload, out),
        )  # fmt: skip
        self.places = [layout.parts(index)[0].shard_start for index in range(len(sizes))]

    @property
    def shown(self) -> list[float]:
        """The servers' weights, the first of each tensor."""
        return [float(self.memory.parameters[place]) for place in self.places]

    @shown.setter
    def shown(self, values: Sequence[float]) -> None:
        self.memory.parameters[self.places] = values

    @property
    def momentum(self) -> list[float]:
        """The servers' momentum, of the same."""
        return [float(self.memory.states[0, place]) for place in self.places]

    def compute(self, worker: int, *moves: Sequence[float | Vector], clock: int = 0) -> None:
        """One deal: a local step for each of ``moves``, then a push."""
        self.sequences[worker] += 1
        deal = Compute(
            worker=worker, deal=self.sequences[worker], pieces=(), clock=clock,
            grouped=is_grouped(self.mode), mode=consistency_text(self.mode),
        )  # fmt: skip
        steps = [(tuple(np.atleast_1d(np.asarray(by, np.float32)) for by in move), 1.0, 0) for move in moves]
        assert self.workers[worker].compute(deal, steps).finite

    def apply(self, worker: int) -> Outcome:
        """As a server does with a push that waits for no group."""
        assert worker in self.shard.pending()
        return self.shard.apply(worker)

    def apply_group(self, *weights: float, lr: float, fragment: int = 0, fragments: int = 1) -> None:
        """As a server does when the launcher names a group of all workers."""
        assert self.shard.pending() == []
        start, stop = fragment_range(self.memory.shape.num_elements, fragment, fragments)
        members = [(slot, self.sequences[slot], weight) for slot, weight in enumerate(weights)]
        found = self.shard.apply_group(members, lr=lr, start=start, stop=stop)
        assert [outcome.verdict for outcome in found] == [APPLIED] * len(weights)


@contextmanager
def bench(
    mode: LocalMode,
    *,
    start: Numbers,
    num_workers: int = 2,
    num_elements: int = 1,
    codec: str = "",
) -> Iterator[Bench]:
    """A tensor of ``num_elements`` for each number of ``start``, which its first element begins at."""
    made = Bench(mode, [num_elements] * len(start), num_workers, mode_codec(codec, mode))
    made.shown = start
    yield made
    for bell in made.bells:
        bell.close()
    made.memory.close()


def test_local_sgd_takes_over_the_mean_of_the_weights() -> None:
    with bench(LocalSgd(steps=2), start=(1.0, 2.0)) as run:
        run.compute(0, (0.5, 0.0), (0.5, -0.5))  # ends at (0, 2.5)
        run.compute(1, (0.25, 0.5), (0.25, 0.5))  # ends at (.5, 1)
        assert run.learners[0].steps_from == [[1.0, 2.0], [0.5, 2.0]]
        run.apply_group(0.5, 0.5, lr=1.0)
        assert run.shown == [0.25, 1.75]
        run.compute(0, (1.0, 0.0), (0.0, 0.0))  # from there, to (-.75, 1.75)
        run.compute(1, (0.0, 1.0), (0.0, 1.0))  # to (.25, -.25)
        assert [learner.steps_from[2] for learner in run.learners] == [[0.25, 1.75]] * 2
        run.apply_group(0.75, 0.25, lr=1.0)  # worker 0 had three times the examples
        assert run.shown == [-0.5, 1.25]


def test_diloco_three_outer_steps_by_hand_and_by_torch() -> None:
    # Mean movements of two workers, then: b = b/2 + g; w -= (g + b/2) / 2.
    rounds: tuple[tuple[tuple[Numbers, Numbers], Numbers, Numbers, Numbers], ...] = (
        # how each worker moves      g            b              w
        (((1.0, 0.0), (0.0, 1.0)), (0.5, 0.5), (0.5, 0.5), (0.625, 1.625)),
        (((0.5, 0.0), (0.0, -1.0)), (0.25, -0.5), (0.5, -0.25), (0.375, 1.9375)),
        (((0.0, 1.0), (0.0, 0.0)), (0.0, 0.5), (0.25, 0.375), (0.3125, 1.59375)),
    )
    reference = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    theirs = torch.optim.SGD([reference], lr=0.5, momentum=0.5, nesterov=True)
    with bench(Diloco(steps=2, lr=0.5, momentum=0.5), start=(1.0, 2.0)) as run:
        for moves, mean, momentum, after in rounds:
            before = run.shown
            for worker, move in enumerate(moves):
                half = tuple(by / 2 for by in move)
                run.compute(worker, half, half)
                assert run.learners[worker].steps_from[-2] == before
            run.apply_group(0.5, 0.5, lr=0.5)
            assert (run.momentum, run.shown) == (list(momentum), list(after))
            reference.grad = torch.tensor(mean)
            theirs.step()
            assert reference.detach().tolist() == list(after)


def test_streaming_diloco_two_fragments_overlap_one_by_hand() -> None:
    """One worker whose local step subtracts 1 from both weights; a fragment is one weight."""
    mode = StreamingDiloco(steps=4, fragments=2, overlap=1, bits=0, mixing=0.5, lr=0.5, momentum=0.5)
    assert pieces_per_deal(mode) == 2
    trace = []
    with bench(mode, start=(10.0, 20.0), num_workers=1) as run:
        for group in range(1, 5):
            run.compute(0, (1.0, 1.0), (1.0, 1.0), clock=group)
            run.apply_group(1.0, lr=0.5, fragment=group % 2, fragments=2)
            trace.append((run.learners[0].steps_from[-2:], run.learners[0].weights, run.shown))
    assert trace == [
        # the two steps began at     ended at         global
        ([[10.0, 20.0], [9.0, 19.0]], [8.0, 18.0], [10.0, 18.5]),  # 1 sent: g = 2, b = 2, w -= (2 + 1) / 2
        # 1 mixed in after the first step: (17 + 18.5) / 2. 0 sent: g = 4, b = 4, w -= (4 + 2) / 2.
        ([[8.0, 18.0], [7.0, 17.75]], [6.0, 16.75], [7.0, 18.5]),
        # 0 mixed in: (5 + 7) / 2. 1 sent: g = 18.5 - 14.75 = 3.75, b = 4.75, w -= (3.75 + 2.375) / 2.
        ([[6.0, 16.75], [6.0, 15.75]], [5.0, 14.75], [7.0, 15.4375]),
        # 1 mixed in: (13.75 + 15.4375) / 2. 0 sent: g = 7 - 3 = 4, b = 6, w -= (4 + 3) / 2.
        ([[5.0, 14.75], [4.0, 14.59375]], [3.0, 13.59375], [3.5, 15.4375]),
    ]


def test_async_diloco_counts_an_older_movement_less() -> None:
    mode = AsyncDiloco(steps=2, lr=0.5, momentum=0.5, age_decay=math.log(2.0))
    with bench(mode, start=(1.0, 2.0)) as run:
        # Both start from (1, 2); the second's movement comes an update later. Each counts a half: there are two.
        run.compute(0, (0.5, 0.0), (0.5, 0.0))
        run.compute(1, (0.0, 1.0), (0.0, 1.0))
        assert run.apply(0).staleness == 0
        assert (run.momentum, run.shown) == ([0.5, 0.0], [0.625, 2.0])  # w -= (.5 + .25, 0) / 2
        assert run.apply(1).staleness == 1
        np.testing.assert_allclose(run.momentum, [0.25, 0.5], rtol=1e-6)  # half of a half of what it moved
        np.testing.assert_allclose(run.shown, [0.5625, 1.625], rtol=1e-6)  # w -= (.125, .5 + .25) / 2
        run.compute(0, (0.0, 0.0), (0.0, 0.0))
        assert run.learners[0].steps_from[-1] == run.shown  # goes on from the global weights


def test_elastic_averaging_moves_worker_and_centre_towards_each_other() -> None:
    with bench(ElasticAveraging(steps=2, alpha=0.25), start=(1.0, 2.0)) as run:
        run.compute(0, (-4.0, 2.0), (0.0, 2.0))  # at (5, -2): draws by (-1, 1)
        run.compute(1, (2.0, 0.0), (0.0, 0.0))  # at (-1, 2): draws by (.5, 0)
        assert [learner.weights for learner in run.learners] == [[4.0, -1.0], [-0.5, 2.0]]
        run.apply(1)
        assert run.shown == [0.5, 2.0]
        run.apply(0)  # another worker was there in between
        assert run.shown == [1.5, 1.0]
        run.compute(0, (0.5, 1.0), (0.5, 0.0))  # goes on from its own weights, to (3, -2)
        assert run.learners[0].steps_from[-2] == [4.0, -1.0]
        assert run.learners[0].weights == [2.625, -1.25]  # a quarter of the way to (1.5, 1)
        run.apply(0)
        assert run.shown == [1.875, 0.25]


def test_mixing_keeps_its_share_of_the_local_weights() -> None:
    for mixing, after in ((0.0, 8.0), (0.25, 7.0), (0.75, 5.0)):
        anchor, local = vector(1.0), vector(4.0)
        mix(vector(8.0), anchor, local, mixing=mixing)
        assert (local[0], anchor[0]) == (after, 8.0)
    with pytest.raises(InputError, match="mixing"):
        mix(vector(8.0), vector(1.0), vector(4.0), mixing=1.0)


def test_which_optimiser_each_mode_means() -> None:
    inner = AdamW(lr=3e-4)
    gradient: tuple[Consistency, ...] = (Bsp(), Asp(), Ssp(staleness=2), Backup())
    assert [outer_optimizer(mode, inner) for mode in gradient] == [inner] * 4
    nesterov = SGD(lr=0.7, momentum=0.9, nesterov=True)
    local: tuple[Consistency, ...] = (Diloco(), StreamingDiloco(), AsyncDiloco())
    assert [outer_optimizer(mode, inner) for mode in local] == [nesterov] * 3
    assert outer_optimizer(Diloco(momentum=0.0), inner) == SGD(lr=0.7)
    for mode in (LocalSgd(steps=3), ElasticAveraging()):
        assert outer_optimizer(mode, inner) == SGD(lr=1.0)


@pytest.mark.parametrize("num_elements", [1 << 20, 1_234_576])
def test_bytes_pushed_against_float32_bsp_over_a_hundred_steps(num_elements: int) -> None:
    """BSP pushes four bytes a parameter each step, ``diloco`` with int8 one in a hundred steps.

    ``streaming_diloco`` with 4 bits pushes half a byte, in four fragments. What is pulled is not encoded.
    """
    bsp, pushed = 4 * num_elements, {}
    move = (np.random.default_rng(0).standard_normal(num_elements, dtype=np.float32),)
    modes: tuple[tuple[LocalMode, str], ...] = (
        (Diloco(steps=100), "int8"),
        (StreamingDiloco(steps=100, fragments=4, bits=4), ""),
    )
    for mode, codec in modes:
        fragments = 100 // pieces_per_deal(mode)
        with bench(mode, start=(0.0,), num_workers=1, num_elements=num_elements, codec=codec) as run:
            sent = [0]
            for group in range(1, fragments + 1):
                run.compute(0, move, clock=group)
                run.apply_group(1.0, lr=0.7, fragment=group % fragments, fragments=fragments)
                sent.append(run.links[0].bytes_sent)
            assert run.memory.header[Header.VERSION] == fragments
            assert np.count_nonzero(run.memory.parameters) > 0.9 * num_elements
        pushed[type(mode)] = np.diff(sent)
    assert 100 * bsp / pushed[Diloco].sum() >= 390
    assert 100 * bsp / pushed[StreamingDiloco].sum() >= 770
    assert pushed[StreamingDiloco].max() <= bsp / 4 / 7.5  # the peak of a step is one fragment
