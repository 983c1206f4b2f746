"""What a worker of a served run does: compute what it is dealt, push it, evaluate and save when told."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import Fault
from leptonai.training.data.dataset import Data
from leptonai.training.data.draws import Draws
from leptonai.training.data.order import Order
from leptonai.training.job import TrainJob
from leptonai.training.learner import Batch, shares
from leptonai.training.parameter_server.client import Client
from leptonai.training.parameter_server.consistency import is_local, parse_consistency
from leptonai.training.parameter_server.flat import FlatLearner
from leptonai.training.parameter_server.local_worker import LocalWorker, Pushed
from leptonai.training.parameter_server.memory import APPLIED
from leptonai.training.parameter_server.tables.link import TableFault
from leptonai.training.parameter_server.tables.session import TableSession
from leptonai.training.parameter_server.witness import Witness
from leptonai.training.parameter_server.work import Compute, Piece, compute_from_json
from leptonai.training.stopwatch import Stopwatch

Phase = Literal["computing", "exchanging", "pausing"]


class Launcher(Protocol):
    """The worker's line to the launcher."""

    def send(self, values: Mapping[str, Any]) -> None: ...

    def receive(self) -> Mapping[str, Any]: ...


class Strikes(Protocol):
    """What may go wrong in this process on purpose."""

    def step_begins(self) -> None:
        """A deal was taken."""
        ...

    def at_step(self, step: int) -> None:
        """As many deals are done: be slow, or die."""
        ...


class ServedLoop:
    """One worker's part in a served run.

    Args:
        rank: of this worker; also its slot.
        total_steps: of the run, for the learning-rate schedule.
        note: says where this worker is, for the supervisor.
        save: writes a checkpoint of (step, extra).
        tables: the model's, if it has any.
        witness: the client's, in a run that is recorded.
        hogwild: step in the shared weights oneself; the client's parameters are views of them.
        strikes: injected faults, asked between what a deal reads and what it pushes.
    """

    def __init__(
        self,
        *,
        job: TrainJob,
        data: Data,
        learner: FlatLearner,
        client: Client,
        launcher: Launcher,
        rank: int,
        num_workers: int,
        base_learning_rate: float,
        note: Callable[[int, Phase], None],
        save: Callable[[int, Mapping[str, Any]], None],
        rebind: Callable[[str], None],
        tables: TableSession | None = None,
        witness: Witness | None = None,
        hogwild: bool = False,
        strikes: Strikes | None = None,
    ) -> None:
        self._job, self._data, self._learner, self._client = job, data, learner, client
        self._launcher, self._rank, self._rate = launcher, rank, base_learning_rate
        self._num_workers = num_workers
        self._note, self._save, self._rebind = note, save, rebind
        self._tables = tables or TableSession([], [])
        self._witness, self._hogwild, self._strikes = witness, hogwild, strikes
        self._order = Order(
            seed=job.seed,
            num_examples=len(data.train),
            global_batch_size=job.global_batch_size,
            shuffle=job.shuffle,
        )
        self._total = job.total_steps(len(data.train))
        self._local: LocalWorker | None = None
        self._mode = ""
        self._watch = Stopwatch()

    def run(self) -> None:
        """Do as dealt until told to finish."""
        self._launcher.send({"served": {"kind": "joined"}})
        self._watch.begin()
        while True:
            said = self._launcher.receive()
            match said:
                case {"compute": values}:
                    self._watch.lap("exchange")  # it waited for others
                    self._compute(compute_from_json(values))
                case {"evaluate": {"index": index, "count": count, "step": step}}:
                    self._evaluate(index, count, step)
                    self._watch.begin()
                case {"save": {"step": step, "extra": extra}}:
                    self._note(step, "pausing")
                    with self._global_weights():
                        self._save(step, extra)
                    self._launcher.send({"served": {"kind": "saved"}})
                    self._watch.begin()
                case {"finish": _}:
                    return
                case _:
                    raise Fault(f"the launcher said what this worker does not know: {sorted(said)}")

    # -- computing ----------------------------------------------------------------------------------

    def _compute(self, deal: Compute) -> None:
        if self._strikes is not None:
            self._strikes.step_begins()
        if self._witness is not None:
            self._witness.begin()
        if deal.mode != self._mode:
            self._rebind(deal.mode)
            self._mode = deal.mode
            mode = parse_consistency(deal.mode)
            self._local = (
                LocalWorker(mode, self._client, self._learner, num_workers=self._num_workers)
                if is_local(mode)
                else None
            )
        self._note(deal.clock, "computing")
        if self._local is not None:
            pushed = self._local.compute(deal, self._steps(deal), before_push=lambda: self._strike(deal))
            self._watch.lap("compute")
        else:
            pushed = self._gradient(deal)
        self._note(deal.clock + 1, "exchanging")
        report: dict[str, Any] = {
            "deal": deal.deal,
            "loss": pushed.loss,
            "examples": pushed.examples,
            "lr": pushed.lr,
        }
        if not pushed.finite:
            if self._witness is not None:
                self._witness.pushing(deal.deal, [])
            self._launcher.send({"served": {"kind": "refused", **report}})
        elif self._hogwild:
            report["phases"] = self._phases()
            self._launcher.send({"served": {"kind": "applied", **report, "staleness": 0}})
        elif deal.grouped:
            report["phases"] = self._phases()
            self._launcher.send({"served": {"kind": "offered", **report, **self._traffic()}})
        else:
            self._await_applied(deal, report)

    def _strike(self, deal: Compute) -> None:
        if self._strikes is not None:
            self._strikes.at_step(deal.clock)

    def _gradient(self, deal: Compute) -> Pushed:
        (piece,) = deal.pieces
        self._client.pull()
        self._learner.refresh()
        self._tables.clear()
        self._watch.lap("exchange")
        batch = self._batch(piece)
        self._watch.lap("input")
        size = len(self._order.batch(piece.step).indices)
        try:
            loss = self._learner.gradient(batch, num_examples=size, seed=self._seed(piece))
        except TableFault:
            raise
        except Fault:  # the loss is not finite: refused here, computed once more elsewhere
            return Pushed(loss=0.0, examples=piece.num_examples, finite=False)
        self._watch.lap("compute")
        self._strike(deal)
        factor = self._job.schedule(piece.step, self._total)
        self._tables.collect()
        if self._job.clip_norm is not None:
            clip([*self._client.gradients(), *self._tables.arrays()], self._job.clip_norm)
        finite = self._client.finite() and self._tables.finite()
        if finite and self._hogwild:
            self._step_in_place(self._rate * factor)
        elif finite:
            self._tables.prepare(deal.deal, lr_factor=factor, grouped=deal.grouped)
            self._client.push(deal.deal, lr=self._rate * factor, grouped=deal.grouped, clock=deal.clock)
            self._tables.submit(deal.deal)
        return Pushed(loss=loss, examples=piece.num_examples, lr=self._rate * factor, finite=finite)

    def _step_in_place(self, lr: float) -> None:
        """Hogwild: change the shared weights oneself, without a lock."""
        for parameters, gradients in zip(self._client.parameters(), self._client.gradients(), strict=True):
            gradients *= np.float32(-lr)
            parameters += gradients

    def _await_applied(self, deal: Compute, report: dict[str, Any]) -> None:
        answers = self._client.answers(deal.deal)
        self._tables.answer(deal.deal)
        found = {
            "staleness": max(answer.staleness for answer in answers),
            "versions": [answer.version if answer.verdict == APPLIED else 0 for answer in answers],
        }
        report["phases"] = self._phases()
        self._launcher.send({"served": {"kind": "applied", **report, **found, **self._traffic()}})

    def _phases(self) -> dict[str, float]:
        self._watch.lap("exchange")
        return self._watch.take()

    def _traffic(self) -> dict[str, int]:
        return {
            "bytes_sent": self._client.bytes_sent + self._tables.bytes_sent,
            "bytes_received": self._client.bytes_received + self._tables.bytes_received,
        }

    def _steps(self, deal: Compute) -> Iterator[tuple[Batch, float, int]]:
        for piece in deal.pieces:
            yield self._batch(piece), self._job.schedule(piece.step, self._total), self._seed(piece)

    def _seed(self, piece: Piece) -> int:
        return piece_seed(self._job.seed, piece)

    def _batch(self, piece: Piece) -> Batch:
        return piece_batch(self._job, self._data, self._order, piece)

    # -- evaluation -----------------------------------------------------------------------------------

    def _evaluate(self, index: int, count: int, step: int) -> None:
        self._note(step, "pausing")
        with self._global_weights():
            sums = self._learner.evaluate(self._evaluation_batches(index, count))
        self._launcher.send({"served": {"kind": "evaluated", "sums": dict(sums)}})
        self._note(step, "computing")

    @contextlib.contextmanager
    def _global_weights(self) -> Iterator[None]:
        """The servers' parameters in the model, also where the worker has weights of its own."""
        if self._local is not None:
            with self._local.global_weights():
                yield
        else:
            self._client.pull()
            self._learner.refresh()
            yield

    def _evaluation_batches(self, index: int, count: int) -> Iterator[Batch]:
        examples = self._data.evaluate
        assert examples is not None
        share = shares(len(examples), count)[index]
        size = self._job.evaluate.batch_size
        for begin in range(share.start, share.stop, size):
            yield self._data.evaluation_batch(np.arange(begin, min(begin + size, share.stop), dtype=np.int64))


def clip(gradients: Sequence[NDArray[np.float32]], norm: float) -> None:
    """Scale one worker's gradient down so that its L2 norm over all tensors is at most ``norm``, in place.

    Each worker clips its own before pushing, unlike all-reduce training, which clips the sum of all.
    """
    total = math.sqrt(sum(float(np.dot(array, array)) for array in gradients))
    if total > norm:
        for array in gradients:
            array *= np.float32(norm / total)


def piece_seed(seed: int, piece: Piece) -> int:
    """For dropout and the like: a function of the job's seed and the piece, whoever computes it."""
    return int(np.random.SeedSequence([seed, piece.step, piece.start]).generate_state(1)[0])


def piece_batch(job: TrainJob, data: Data, order: Order, piece: Piece) -> Batch:
    """The examples of a piece, augmented as they would be on any worker."""
    chosen = order.batch(piece.step)
    share = slice(piece.start, piece.stop)
    draws = Draws(
        seed=job.seed, epoch=chosen.epoch, step=piece.step, num_examples=len(chosen.indices), share=share
    )
    return data.training_batch(chosen.indices[share], draws)
