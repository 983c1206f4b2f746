"""The local engine: workers as processes of this machine, forked from one zygote. Linux only."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from leptonai.compute.engines.base import Exited, Message, Report, Started, WorkerName, WorkerSpec
from leptonai.compute.engines.wire import LineReader, encode, receive_with_fds, send_with_fds
from leptonai.core.errors import Fault, InputError

STOP_SECONDS = 10.0

# glibc gives every large block back to the kernel when it is freed, so each training step faults its
# activations in anew. See decision 0015 for what keeping them gained.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(4 * 2**30)}


class LocalEngine:
    """Starts at once: the zygote imports ``preload`` while the launcher reads its files.

    Args:
        entry: ``"module:function"``, called in each worker with its channel and inherited descriptors.
        preload: modules to import once, before any worker is forked; they must start no thread.
    """

    def __init__(self, *, entry: str, preload: Sequence[str] = ()) -> None:
        if not sys.platform.startswith("linux"):
            raise InputError(
                f"the local engine needs Linux, found {sys.platform}", hint="run in a Linux container or WSL"
            )
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [
            sys.executable,
            "-m",
            "leptonai.compute.engines.zygote",
            str(theirs.fileno()),
            entry,
            *preload,
        ]
        self._zygote = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches the launcher alone, which then ends the workers
            # numpy's BLAS would start threads on import, and a process with threads must not fork.
            env={
                **KEEP_MEMORY,
                **os.environ,
                "OPENBLAS_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            },
        )
        theirs.close()
        self._channels: dict[WorkerName, socket.socket] = {}
        self._readers: dict[WorkerName, LineReader] = {}
        self._alive: set[WorkerName] = set()
        self._running: set[WorkerName] = set()

    def start(self, spec: WorkerSpec) -> None:
        """Fork one worker; see :class:`~leptonai.compute.engines.base.Engine`."""
        ours, theirs = socket.socketpair()
        order = {
            "op": "start", "name": spec.name, "log": str(spec.log), "cores": list(spec.cores),
            "environment": dict(spec.environment),
        }  # fmt: skip
        try:
            send_with_fds(self._control, order, [theirs.fileno(), *spec.fds])
        except OSError as error:
            raise Fault("the process that starts workers is gone") from error
        finally:
            theirs.close()
        self._channels[spec.name] = ours
        self._readers[spec.name] = LineReader()
        self._alive.add(spec.name)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            ours.sendall(encode({**spec.assignment, "payload_bytes": len(spec.payload)}) + spec.payload)

    def poll(self, timeout_seconds: float) -> list[Report]:
        """Reports since the last call; a worker's Started comes before its messages, and these before its Exited."""
        sockets = {
            channel.fileno(): name for name, channel in self._channels.items() if name in self._running
        }
        poller = select.poll()
        for fd in [*sockets, self._control.fileno()]:
            poller.register(fd, select.POLLIN)
        reports: list[Report] = []
        for fd, _mask in poller.poll(timeout_seconds * 1000):
            if fd == self._control.fileno():
                reports += self._hear_zygote()
            else:
                reports += self._hear(sockets[fd])
        return sorted(reports, key=lambda report: isinstance(report, Exited))

    def _hear(self, name: WorkerName) -> list[Report]:
        channel = self._channels.get(name)
        if channel is None:
            return []
        data = b""
        with contextlib.suppress(ConnectionResetError, BlockingIOError):
            data = channel.recv(2**16)
        if not data:
            self._channels.pop(name).close()
            return []
        reader = self._readers[name]
        reader.add(data)
        return [Message(name=name, values=values) for values in reader.values()]

    def _hear_zygote(self) -> list[Report]:
        try:
            received = receive_with_fds(self._control)
        except ConnectionResetError:
            received = None
        if received is None:
            raise Fault(
                "the process that starts workers died", hint="was it killed, or the machine out of memory?"
            )
        said, _fds = received
        name = said["name"]
        if said["op"] == "started":
            self._running.add(name)
            return [Started(name=name, pid=said["pid"])]
        self._alive.discard(name)
        self._running.discard(name)
        last: list[Report] = []
        while name in self._channels:  # what it said before it ended
            if not select.select([self._channels[name]], [], [], 0)[0]:
                self._channels.pop(name).close()
                break
            last += self._hear(name)
        return [*last, Exited(name=name, code=said["code"])]

    def send(self, name: WorkerName, values: Mapping[str, Any]) -> None:
        """One JSON line to a worker that may already be gone."""
        channel = self._channels.get(name)
        if channel is not None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                channel.sendall(encode(values))

    def signal(self, name: WorkerName, number: signal.Signals) -> None:
        """Send a signal to a worker's process group, through its parent, so never to a reused pid."""
        with contextlib.suppress(OSError):
            send_with_fds(self._control, {"op": "signal", "name": name, "signal": int(number)}, ())

    def stop_workers(self) -> None:
        """Kill every worker's process group and wait for all of them; afterwards the engine can start others."""
        for name in self._alive:
            self.signal(name, signal.SIGKILL)
        deadline = time.monotonic() + STOP_SECONDS
        while self._alive and time.monotonic() < deadline:
            self.poll(0.05)
        for name in list(self._channels):
            self._channels.pop(name).close()
        if self._alive:
            raise Fault(
                f"workers could not be ended: {', '.join(sorted(self._alive))}",
                hint="are they stuck in the kernel?",
            )

    def close(self) -> None:
        """Kill every worker (closing the control socket is the order to do so) and wait for the zygote."""
        self._control.close()
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()
        try:
            # Without workers there is nothing for it to end, and it may be busy importing.
            if not self._alive:
                self._zygote.kill()
            self._zygote.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._zygote.kill()
            self._zygote.wait()
