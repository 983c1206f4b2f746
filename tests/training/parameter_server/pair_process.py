"""One server of a pair as a process, told what to do by JSON lines; it can be told at which store to die."""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonai.training.optimizers import SGD, Adam, Optimizer
from leptonai.training.parameter_server.bell import Bell
from leptonai.training.parameter_server.codecs.parse import parse_codec
from leptonai.training.parameter_server.intent import Replication, Update
from leptonai.training.parameter_server.kernels import Kernels, initialise_states, num_states
from leptonai.training.parameter_server.memory import ShardMemory, ShardShape, Slot
from leptonai.training.parameter_server.numpy_kernels import NumpyKernels
from leptonai.training.parameter_server.pair import PairServer
from leptonai.training.parameter_server.replica import BackupLost
from leptonai.training.parameter_server.server import serve
from leptonai.training.parameter_server.shard import Shard
from tests.training.parameter_server.tcp_stand_in import JOB, TOKEN

SIZE, CHUNK, NUM_SLOTS = 1 << 17, 1 << 15, 2
CODEC = parse_codec("int8")
OPTIMIZERS: dict[str, tuple[Optimizer, str]] = {
    "sgd": (SGD(lr=0.1, momentum=0.9), "numpy"),
    "plain": (SGD(lr=1.0), "numpy"),
    "compensated": (SGD(lr=0.1, momentum=0.9), "numpy"),
    "adam": (Adam(), "numpy"),
    "fused": (Adam(), "torch"),
}
PLACES = ("chunk", "before", "repeated", "answered", "ending", "ended")
"""Where a primary dies: within an update, before its backup knows of it, before the answer, behind it, and before
and behind telling the backup of a push without an update."""


def new_memory(case: str, *, size: int = SIZE, chunk: int = CHUNK) -> ShardMemory:
    optimizer, _ = OPTIMIZERS[case]
    memory = ShardMemory.create(
        ShardShape(
            num_elements=size, num_states=num_states(optimizer), num_slots=NUM_SLOTS, chunk_elements=chunk,
            has_reads=case == "compensated",
        )
    )  # fmt: skip
    initialise_states(optimizer, memory.states)
    return memory


def begin(memory: ShardMemory) -> None:
    """The parameters a first primary begins with."""
    memory.parameters[:] = np.random.default_rng(5).integers(-8, 9, len(memory.parameters))


def new_shard(case: str, memory: ShardMemory, answered: Callable[[int], None] = lambda _: None) -> Shard:
    optimizer, kind = OPTIMIZERS[case]
    kernels: Kernels | None = NumpyKernels(optimizer) if kind == "numpy" else None
    return Shard(
        memory, optimizer, kernels=kernels, decode=decode, answered=answered,
        delay_compensation=0.05 if case == "compensated" else 0.0,
    )  # fmt: skip


def decode(number: int, payload: memoryview, out: NDArray[np.float32]) -> None:
    assert number == 0
    CODEC.decode(payload, out)


def contents(memory: ShardMemory) -> dict[str, Any]:
    """All that an undisturbed run must leave too."""
    told = [Slot.OFFERED, Slot.ANSWERED, Slot.VERDICT, Slot.VERSION, Slot.STALENESS]
    return {
        "digest": hashlib.sha256(memory.parameters.tobytes() + memory.states.tobytes()).hexdigest(),
        "version": int(memory.header[8]),
        "chunks": memory.chunks.tolist(),
        "slots": memory.slots[:, told].tolist(),
    }


class Deadly:
    """Replication at which the process dies when told to."""

    def __init__(self, inner: Replication, die: Callable[[str], None]) -> None:
        self._inner, self._die = inner, die

    def before_answer(self, update: Update) -> None:
        self._die("before")
        self._inner.before_answer(update)
        self._die("repeated")

    def before_ending(self, slot: int, sequence: int, verdict: int) -> None:
        self._die("ending")
        self._inner.before_ending(slot, sequence, verdict)
        self._die("ended")


class Process:
    """Obeys the lines on standard input."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        self.memory = new_memory(said["case"], size=said.get("size", SIZE), chunk=said.get("chunk", CHUNK))
        self.bell = Bell.create()
        bells = [Bell.create() for _ in range(NUM_SLOTS)]

        def answered(slot: int) -> None:
            if self.memory.slots[slot, Slot.WORKER_SLEEPING]:
                bells[slot].ring()

        self.shard = new_shard(said["case"], self.memory, answered)
        self.pair = PairServer(
            self.shard, bell=self.bell, worker_bells=bells, bind=("127.0.0.1", said.get("port", 0)),
            job=JOB, token=TOKEN, deadline_seconds=1.0, halted=lambda why: say(halted=why),
        )  # fmt: skip
        self._orders: list[dict[str, Any]] = []
        self._place, self._times = "", 0
        self._rest = b""
        log: Any = self.shard._log
        close_chunk, finish = log.close_chunk, log.finish

        def deadly_chunk(chunk: int) -> None:
            self._die("chunk")
            close_chunk(chunk)

        def deadly_finish(*arguments: Any) -> None:
            finish(*arguments)
            self._die("answered")

        log.close_chunk, log.finish = deadly_chunk, deadly_finish

    def _die(self, place: str) -> None:
        if place == self._place and self.pair.role == "serving":
            self._times -= 1
            if self._times <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def obey(self, said: Mapping[str, Any]) -> bool:
        match said["do"]:
            case "lead":
                begin(self.memory)
                self.pair.lead()
                say(address=self.pair.address)
            case "follow":
                self.pair.follow()
                say(follows=self.pair.address)
            case "promote":
                self.pair.promote()
                say(serving=self.pair.address)
            case "replicate":
                self.pair.replicate(tuple(said["address"]))
                assert self.shard.replication is not None
                self.shard.replication = Deadly(self.shard.replication, self._die)
                say(replicated=True)
            case "alone":
                self.pair.go_on_alone()
                say(alone=True)
            case "die":
                self._place, self._times = said["place"], said["times"]
                say(doomed=True)
            case "apply" | "drop":
                self._orders.append(dict(said))
            case "report":
                say(**contents(self.memory))
            case _:
                return False
        return True

    def serve_pending(self) -> bool:
        """Groups that are whole, as a launcher orders them."""
        for order in list(self._orders):
            members = [(slot, sequence, weight) for slot, sequence, weight in order["members"]]
            if not self.pair.ready(members):
                continue
            self._orders.remove(order)
            try:
                if order["do"] == "apply":
                    self.pair.apply_group(members, lr=order["lr"])
                else:
                    self.pair.drop(*members[0][:2])
            except BackupLost:
                return True
        return False

    def fileno(self) -> int:
        return 0

    def ready(self) -> Sequence[Mapping[str, Any]]:
        if not select.select([0], [], [], 0)[0]:
            return []
        data = os.read(0, 1 << 16)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines] if data else [{"do": "end"}]


def say(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    process = Process(json.loads(sys.argv[1]))
    serve(process.memory, process.bell, [process.pair, process], process, process.obey)
    process.pair.close()
    os._exit(0)
