"""A shard with an apply loop on a thread, plain SGD, for tests of what lies between it and its workers."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonai.training.parameter_server.bell import Bell
from leptonai.training.parameter_server.memory import (
    APPLIED,
    GROUPED,
    Header,
    ShardMemory,
    ShardShape,
    Slot,
)

JOB = b"job of the tests"
TOKEN = b"a token of thirty-two bytes, yes."


def small_shape(**changes: int) -> ShardShape:
    values: dict[str, Any] = {
        "num_elements": 4096,
        "num_states": 1,
        "num_slots": 3,
        "chunk_elements": 1024,
        **changes,
    }
    return ShardShape(**values)


def apply_push(memory: ShardMemory, slot: int) -> None:
    """Plain SGD on what is offered there, then the answer, in the order the memory's layout asks for."""
    words = memory.slots[slot]
    start, stop = int(words[Slot.START]), int(words[Slot.STOP])
    count = int(words[Slot.PAYLOAD_BYTES])
    if count:
        gradient = memory.payload(slot)[:count].copy().view(np.float16).astype(np.float32)
    else:
        gradient = memory.gradients(slot)[start:stop]
    factor = np.float32(memory.slot_float(slot, Slot.LR) * memory.slot_float(slot, Slot.WEIGHT))
    for chunk in range(memory.shape.num_chunks):
        low, high = memory.chunk_range(chunk)
        low, high = max(low, start), min(high, stop)
        if low < high:
            memory.chunks[chunk] += 1
            memory.parameters[low:high] -= factor * gradient[low - start : high - start]
            memory.chunks[chunk] += 1


def answer_push(memory: ShardMemory, slot: int, verdict: int = APPLIED) -> None:
    words = memory.slots[slot]
    before = int(memory.header[Header.VERSION])
    memory.header[Header.VERSION] = before + 1
    words[Slot.VERDICT], words[Slot.VERSION] = verdict, before + 1
    words[Slot.STALENESS] = max(0, before - int(words[Slot.READ_VERSION]))
    words[Slot.ANSWERED] = words[Slot.OFFERED]


class StandIn:
    """Memory, bells, and a thread that applies what is offered, and calls what is put into ``between``.

    Args:
        memory: to go on with; None: fresh.
        before_answer: called with the slot between applying and answering.
    """

    def __init__(
        self,
        shape: ShardShape,
        *,
        memory: ShardMemory | None = None,
        before_answer: Callable[[int], None] = lambda slot: None,
    ) -> None:
        self.memory = ShardMemory.create(shape) if memory is None else memory
        self.server_bell = Bell.create()
        self.worker_bells = [Bell.create() for _ in range(shape.num_slots)]
        self.paused = threading.Event()
        self.between: list[Callable[[], None]] = []
        self.applied: list[tuple[int, int]] = []
        self.before_answer = before_answer
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        memory = self.memory
        while not self._ended.is_set():
            while self.between:
                self.between.pop(0)()
            if not self.paused.is_set():
                for slot in range(memory.shape.num_slots):
                    self._look(slot)
            time.sleep(0.0002)

    def _look(self, slot: int) -> None:
        words = self.memory.slots[slot]
        if int(words[Slot.OFFERED]) > int(words[Slot.ANSWERED]) and not int(words[Slot.FLAGS]) & GROUPED:
            apply_push(self.memory, slot)
            self.applied.append((slot, int(words[Slot.OFFERED])))
            self.before_answer(slot)
            answer_push(self.memory, slot)
            if words[Slot.WORKER_SLEEPING]:
                self.worker_bells[slot].ring()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self.memory.close()
        for bell in (self.server_bell, *self.worker_bells):
            bell.close()


@contextlib.contextmanager
def stand_in(
    shape: ShardShape | None = None, *, before_answer: Callable[[int], None] = lambda slot: None
) -> Iterator[StandIn]:
    server = StandIn(shape or small_shape(), before_answer=before_answer)
    try:
        yield server
    finally:
        server.close()


def numbers(seed: int, count: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(count, dtype=np.float32)


def make_certificates(folder: Path, *, address: str = "127.0.0.1") -> dict[str, Path]:
    """A throw-away authority, and certificates of a server at ``address``, a worker, and a stranger."""
    folder.mkdir(exist_ok=True)
    files: dict[str, Path] = {}
    for authority in ("authority", "elsewhere"):
        files[authority] = folder / f"{authority}.pem"
        _openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
            "-subj", f"/CN=test {authority}", "-keyout", str(folder / f"{authority}.key"),
            "-out", str(files[authority]),
        )  # fmt: skip
    for name, signer in (("server", "authority"), ("worker", "authority"), ("stranger", "elsewhere")):
        files[name], files[f"{name}_key"] = folder / f"{name}.pem", folder / f"{name}.key"
        _openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
            "-subj", f"/CN=test {name}", "-addext", f"subjectAltName=IP:{address}",
            "-addext", "basicConstraints=critical,CA:FALSE",
            "-CA", str(files[signer]), "-CAkey", str(folder / f"{signer}.key"),
            "-keyout", str(files[f"{name}_key"]), "-out", str(files[name]),
        )  # fmt: skip
    return files


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=30)


class Told:
    """A process of ``module``, told things by JSON lines and heard the same way; killed at the end.

    Args:
        prefix: words before the command, such as those that enter a network namespace.
        module: beside this one.
    """

    def __init__(
        self, prefix: tuple[str, ...] = (), *, module: str = "shard_process", **said: object
    ) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", f"tests.training.parameter_server.{module}", json.dumps(said)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3],
        )  # fmt: skip
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)

    def tell(self, **said: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(said) + "\n")
        self.process.stdin.flush()

    def heard(self) -> list[str]:
        """The lines not listened to so far."""
        return [self._lines.get() for _ in range(self._lines.qsize())]

    def hear(self, name: str, *, seconds: float = 30.0) -> Any:
        """The value of that name in the next line that has it."""
        deadline = time.monotonic() + seconds
        while True:
            values = json.loads(self._lines.get(timeout=max(0.0, deadline - time.monotonic())))
            if name in values:
                return values if name == "digest" else values[name]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
