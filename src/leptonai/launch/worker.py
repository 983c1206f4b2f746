"""The entry of every worker process: receive an assignment, join the parts, run the loop, report."""

from __future__ import annotations

import contextlib
import faulthandler
import mmap
import select
import signal
import socket
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from leptonai.compute.engines.progress import ProgressPage
from leptonai.compute.engines.wire import LineReader, encode
from leptonai.core.clock import SystemClock
from leptonai.core.control import Halt, Save, order_from_json
from leptonai.core.errors import Fault, LeptonError
from leptonai.core.events import Event, event_to_json
from leptonai.launch.jobs import load_job

if TYPE_CHECKING:
    from leptonai.training.job import TrainJob
    from leptonai.training.learner import Exchange


class Line:
    """This worker's end of the private socket to the launcher."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._reader = LineReader()

    def fileno(self) -> int:
        """To wait on."""
        return self._channel.fileno()

    def receive(self) -> dict[str, Any]:
        """The next value, waiting for it. Raises Fault when the launcher is gone."""
        while (value := self._reader.next_value()) is None:
            data = self._channel.recv(2**16)
            if not data:
                raise Fault("the launcher is gone")
            self._reader.add(data)
        return value

    def receive_bytes(self, count: int) -> bytes:
        """Exactly ``count`` bytes that follow the last value."""
        found = self._reader.take_rest()
        parts, size = [found], len(found)
        while size < count:
            data = self._channel.recv(min(2**20, count - size))
            if not data:
                raise Fault("the launcher is gone")
            parts.append(data)
            size += len(data)
        return b"".join(parts)

    def ready(self) -> Iterator[dict[str, Any]]:
        """Values that have already come in."""
        yield from self._reader.values()
        while select.select([self._channel], [], [], 0)[0]:
            yield self.receive()
            yield from self._reader.values()

    def send(self, values: Mapping[str, Any]) -> None:
        """Say something; a launcher that is gone will end this process anyway."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._channel.sendall(encode(values))


def main(channel: socket.socket, fds: list[int]) -> int:
    """Play the assigned role to the end; the exit status repeats what was reported."""
    # The launcher asks a hung worker for its stacks with this signal; they go to the worker's log.
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    line = Line(channel)
    assignment = line.receive()
    phase = _Phase()
    try:
        payload = line.receive_bytes(assignment["payload_bytes"])
        if assignment["role"] == "server":
            from leptonai.launch.server_process import run_server

            run_server(assignment, line, fds)
            return 0
        job = _job(assignment, payload, fds[1:])
        if assignment["role"] == "scout":
            from leptonai.launch.scout import scout

            line.send({"scouted": scout(job, assignment)})
        elif assignment["role"] == "served":
            from leptonai.launch.served_worker import run_served_worker

            line.send({"ended": run_served_worker(job, assignment, line, fds)})
        else:
            line.send({"ended": _train(job, assignment, line, fds[0], phase)})
    except LeptonError as error:
        line.send(_failure(error, type(error).__name__, error.message, error.hint, phase))
        return 1
    except Exception as error:
        line.send(_failure(error, "error", f"{type(error).__name__}: {error}", None, phase))
        return 1
    return 0


class _Phase:
    """What this worker is doing, for the report of its failure."""

    step = 0
    doing = "starting"


def _failure(
    error: BaseException, kind: str, message: str, hint: str | None, phase: _Phase
) -> dict[str, Any]:
    text = "".join(traceback.format_exception(error))
    print(text, flush=True)
    return {
        "failed": {
            "kind": kind, "message": message, "hint": hint, "traceback": text, "step": phase.step,
            "at_monotonic": time.monotonic(), "lost_peer": _is_lost_peer(error),
        }
    }  # fmt: skip


def _is_lost_peer(error: BaseException) -> bool:
    """Whether this worker failed only because another one did: gloo and NCCL say it in these words."""
    words = (
        "Connection closed by peer",
        "Connection reset by peer",
        "connectFullMesh",
        "Broken pipe",
        "ncclRemoteError",
    )
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _job(assignment: Mapping[str, Any], payload: bytes, fds: list[int]) -> TrainJob:
    source = assignment["job"]
    if "path" in source:
        return load_job(Path(source["path"]), tuple(source["overrides"]))
    import cloudpickle

    # From our own parent, through a socket only it and this process hold.
    build = cloudpickle.loads(payload)
    job: TrainJob = build(_shared_arrays(source["arrays"], fds))
    return job


def _shared_arrays(descriptions: list[dict[str, Any]], fds: list[int]) -> dict[str, Any]:
    """Arrays in the launcher's memory files, mapped read-only: all workers share one copy."""
    import numpy as np

    arrays = {}
    for description, fd in zip(descriptions, fds, strict=False):  # a served worker inherits more
        dtype, shape = np.dtype(description["dtype"]), tuple(description["shape"])
        count = int(np.prod(shape))
        memory = mmap.mmap(fd, max(1, count * dtype.itemsize), prot=mmap.PROT_READ)
        arrays[description["name"]] = np.frombuffer(memory, dtype=dtype, count=count).reshape(shape)
    return arrays


def _train(
    job: TrainJob, assignment: Mapping[str, Any], line: Line, progress_fd: int, phase: _Phase
) -> dict[str, Any]:
    from leptonai.compute.plan import Tuning
    from leptonai.launch.frameworks import FRAMEWORKS, Place
    from leptonai.training.checkpoint import CheckpointStore
    from leptonai.training.loop import Loop, Start

    framework = FRAMEWORKS[assignment["framework"]]()
    tuning = Tuning(**assignment["tuning"])
    framework.configure(tuning.threads)
    data = job.load_data()
    exchange = _exchange(assignment)
    rank = assignment["rank"]
    page = ProgressPage(progress_fd, assignment["num_workers"])
    hooks = _Hooks(line, page, rank, phase)
    learner = framework.learner(
        job,
        exchange,
        tuning,
        Place(device=assignment["device"], some_unused=assignment["some_unused"]),
        hooks.exchanging,
    )
    store = CheckpointStore(Path(assignment["run_dir"]) / "checkpoints", keep=job.checkpoints.keep)
    start = Start()
    if assignment["resume_from"]:
        checkpoint = store.load(Path(assignment["resume_from"]))
        learner.restore(checkpoint.state)
        start = Start(step=checkpoint.step, extra=checkpoint.extra)
    loop = Loop(
        job=job, data=data, learner=learner, exchange=exchange, clock=SystemClock(),
        hooks=hooks, identity=assignment["identity"],
        store=store, gated=assignment["gated"],
    )  # fmt: skip
    ending, step = loop.run(start)
    page.note(rank, step, "pausing")
    return {"ending": ending, "step": step, "metrics": dict(loop.metrics), "saved_step": loop.saved_step}


def _exchange(assignment: Mapping[str, Any]) -> Exchange:
    from leptonai.training.learner import Alone

    if assignment["num_workers"] == 1:
        return Alone()
    from leptonai.training.pytorch.exchange import TorchExchange

    return TorchExchange(
        rank=assignment["rank"],
        num_workers=assignment["num_workers"],
        rendezvous=Path(assignment["rendezvous"]),
        backend=assignment["backend"],
    )


class _Hooks:
    """The loop's view of this process: events out by the line, orders in, progress on the shared page."""

    def __init__(self, line: Line, page: ProgressPage, rank: int, phase: _Phase) -> None:
        self._line, self._page, self._rank, self._phase = line, page, rank, phase

    def emit(self, event: Event) -> None:
        self._line.send({"event": event_to_json(event)})

    def orders(self) -> tuple[bool, bool]:
        halt = save = False
        for values in self._line.ready():
            order = order_from_json(values["order"])
            halt, save = halt or isinstance(order, Halt), save or isinstance(order, Save)
        return halt, save

    def note(self, step: int, phase: Literal["computing", "exchanging", "pausing"]) -> None:
        self._phase.step, self._phase.doing = step, phase
        self._page.note(self._rank, step, phase)

    def exchanging(self) -> None:
        """This worker now waits for the others."""
        self.note(self._phase.step, "exchanging")

    def epoch_gate(self, epoch: int, step: int, metrics: Mapping[str, float]) -> tuple[bool, float | None]:
        self._line.send({"gate": {"epoch": epoch, "step": step, "metrics": dict(metrics)}})
        while True:
            values = self._line.receive()
            if "gate" in values:
                return bool(values["gate"]["stop"]), values["gate"]["learning_rate"]
            if isinstance(order_from_json(values["order"]), Halt):
                return True, None
