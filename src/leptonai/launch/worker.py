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
from typing import TYPE_CHECKING, Any

from leptonai.compute.engines.wire import LineReader, encode
from leptonai.core.errors import Fault, LeptonError
from leptonai.launch.jobs import load_job

if TYPE_CHECKING:
    from leptonai.training.job import TrainJob


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
    phase = Phase()
    try:
        payload = line.receive_bytes(assignment["payload_bytes"])
        if assignment["role"] == "server":
            from leptonai.launch.server_process import run_server

            run_server(assignment, line, fds)
            return 0
        if assignment["role"] == "probe":
            from leptonai.launch.probe_worker import probe

            line.send({"probed": probe(assignment, line, fds)})
            return 0
        job = _job(assignment, payload, fds[1:])
        if assignment["role"] == "scout":
            from leptonai.launch.scout import scout

            line.send({"scouted": scout(job, assignment)})
        elif assignment["role"] == "timing":
            from leptonai.launch.job_timing import time_in_worker

            line.send({"timed": time_in_worker(job, assignment, line)})
        elif assignment["role"] == "replay":
            from leptonai.launch.replaying import replay_in_process

            line.send({"replayed": replay_in_process(job, assignment)})
        elif assignment["role"] == "served":
            from leptonai.launch.served_worker import run_served_worker

            line.send({"ended": run_served_worker(job, assignment, line, fds)})
        else:
            from leptonai.launch.trainer import Trainer

            said = Trainer(job, assignment, line, fds[0], phase).run()
            line.send({"retired": True} if said is None else {"ended": said})
    except LeptonError as error:
        line.send(_failure(error, type(error).__name__, error.message, error.hint, phase))
        return 1
    except Exception as error:
        line.send(_failure(error, "error", f"{type(error).__name__}: {error}", None, phase))
        return 1
    return 0


class Phase:
    """What this worker is doing, for the report of its failure."""

    step = 0
    doing = "starting"


def _failure(error: BaseException, kind: str, message: str, hint: str | None, phase: Phase) -> dict[str, Any]:
    from leptonai.training.takeover import is_lost_peer

    text = "".join(traceback.format_exception(error))
    print(text, flush=True)
    return {
        "failed": {
            "kind": kind, "message": message, "hint": hint, "traceback": text, "step": phase.step,
            "at_monotonic": time.monotonic(), "lost_peer": is_lost_peer(error),
        }
    }  # fmt: skip


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
