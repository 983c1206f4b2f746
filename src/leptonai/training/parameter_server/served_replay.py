"""What a worker of a served run does in a replay: the same loop, client and learner, on a seat's links."""

from __future__ import annotations

from collections.abc import Callable

from leptonai.training.data.dataset import Data
from leptonai.training.job import TrainJob
from leptonai.training.parameter_server.client import Client
from leptonai.training.parameter_server.codecs.base import Codec
from leptonai.training.parameter_server.consistency import is_local, parse_consistency
from leptonai.training.parameter_server.flat import FlatLearner
from leptonai.training.parameter_server.layout import ShardLayout
from leptonai.training.parameter_server.replay import Seat
from leptonai.training.parameter_server.served_loop import ServedLoop


def served_work(
    *,
    job: TrainJob,
    data: Data,
    make_learner: Callable[[], FlatLearner],
    layout: ShardLayout,
    num_workers: int,
    base_learning_rate: float,
    make_codec: Callable[[int], Callable[[int], Codec]] | None = None,
) -> Callable[[Seat], None]:
    """The ``work`` of :func:`~leptonai.training.parameter_server.replay.replay`.

    Args:
        job, data, layout, num_workers, base_learning_rate: as in the run.
        make_learner: a learner as each process of a worker began with: the framework's threads set, and what a
            checkpoint held taken over if the run went on from one.
        make_codec: what the worker of that number makes its encoders with, one a shard; None: pushes are raw.
    """

    def work(seat: Seat) -> None:
        learner = make_learner()
        codec = None if make_codec is None else make_codec(seat.worker)
        client = Client(seat.links, learner.tensors, layout, codec=codec)

        def rebind(mode: str) -> None:
            client.pull()
            if not is_local(parse_consistency(mode)):
                learner.bind(client.parameters(), client.gradients())
                learner.refresh()

        ServedLoop(
            job=job, data=data, learner=learner, client=client, launcher=seat, rank=seat.worker,
            num_workers=num_workers, base_learning_rate=base_learning_rate, rebind=rebind,
            note=lambda clock, phase: None, save=lambda step, extra: None,
        ).run()  # fmt: skip

    return work
