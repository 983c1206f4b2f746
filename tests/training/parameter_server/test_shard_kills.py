"""Servers killed in the middle of updates: the shard ends with the bits of an undisturbed run.

Most are killed by a timer of their own, so that it happens within the update however busy the machine is; the
signal is left to the kernel, and none of the process's code runs after it. The last of each case gets SIGKILL.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from leptonai.training.optimizers import SGD, Adagrad, Adam, AdamW, Lamb, Optimizer
from leptonai.training.parameter_server.compiled_kernels import CompiledKernels
from leptonai.training.parameter_server.kernels import Kernels, initialise_states, num_states
from leptonai.training.parameter_server.memory import PUSH, Header, ShardMemory, ShardShape, Slot
from leptonai.training.parameter_server.numpy_kernels import NumpyKernels
from leptonai.training.parameter_server.shard import Shard
from leptonai.training.parameter_server.torch_kernels import TorchKernels

SIZE, CHUNK = 1 << 19, 1 << 14
RANGES = ((0, 3 * CHUNK + 17), (4 * CHUNK, 4 * CHUNK + 100), (5 * CHUNK, SIZE))
PUSHES = 6
KILLS_OF_A_PUSH = (1, 2, 4)  # in turn: 14 kills a case
LONGEST_LIFE_SECONDS = 1e-3  # shorter than an update takes
DEADLINE_SECONDS = 60.0


CASES: dict[str, tuple[Optimizer, str]] = {
    "sgd": (SGD(lr=1.0, momentum=0.9, nesterov=True), "numpy"),
    "adam": (Adam(), "numpy"),
    "adagrad": (Adagrad(), "numpy"),
    "sgd-torch": (SGD(lr=1.0, momentum=0.9), "torch"),
    "adamw-torch": (AdamW(), "torch"),
    "sgd-compiled": (SGD(lr=1.0, momentum=0.9), "compiled"),
    "adamw-compiled": (AdamW(), "compiled"),
    "adagrad-compiled": (Adagrad(), "compiled"),
    "lamb": (Lamb(), "lamb"),
}


class Servers:
    """The process that forks servers, the one of them that is alive, and the memory of each case."""

    def __init__(self, process: subprocess.Popen[str], memories: dict[str, ShardMemory]) -> None:
        self.process, self.memories, self.pid = process, memories, 0

    def start(self, case: str, *, life_seconds: float = 0.0) -> None:
        """A server that lives for ``life_seconds`` from when it begins to change parameters; 0: until killed."""
        optimizer, kernels = CASES[case]
        order = {
            "fd": self.memories[case].fd, "optimizer": type(optimizer).__name__, "kernels": kernels,
            "options": asdict(optimizer), "ranges": RANGES, "life_seconds": life_seconds,
        }  # fmt: skip
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        self.pid = self._number()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.ended(signal.SIGKILL)

    def ended(self, by: signal.Signals) -> None:
        """Wait for the end of the server, by this signal and nothing else."""
        assert self._number() == by
        self.pid = 0

    def _number(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


def new_memory(optimizer: Optimizer) -> ShardMemory:
    memory = ShardMemory.create(
        ShardShape(
            num_elements=SIZE, num_states=num_states(optimizer), num_slots=2, chunk_elements=CHUNK,
            has_reads=False,
        )
    )  # fmt: skip
    memory.parameters[:] = np.random.default_rng(5).standard_normal(SIZE, np.float32)
    initialise_states(optimizer, memory.states)
    return memory


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    memories = {case: new_memory(optimizer) for case, (optimizer, _) in CASES.items()}
    script = Path(__file__).with_name("forked_shards.py")
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        pass_fds=[memory.fd for memory in memories.values()],
    ) as process:  # fmt: skip
        found = Servers(process, memories)
        try:
            yield found
        finally:
            if found.pid:
                os.kill(found.pid, signal.SIGKILL)
            assert process.stdin is not None
            process.stdin.close()
    for memory in memories.values():
        memory.close()


def offer(memory: ShardMemory, number: int) -> int:
    """Push number ``number`` (0, 1, ...), by the two workers in turn; returns the slot."""
    slot, words = number % 2, memory.slots[number % 2]
    memory.gradients(slot)[:] = np.random.default_rng(number).standard_normal(SIZE, np.float32)
    words[Slot.OP], words[Slot.START], words[Slot.STOP] = PUSH, 0, SIZE
    memory.set_slot_float(slot, Slot.LR, 0.01)
    memory.set_slot_float(slot, Slot.WEIGHT, 0.5 + number)
    words[Slot.OFFERED] = number // 2 + 1
    return slot


def undisturbed(case: str) -> tuple[bytes, bytes, list[int]]:
    optimizer, kind = CASES[case]
    memory = new_memory(optimizer)
    kernels: Kernels | None = None
    if kind != "lamb":
        kinds = {"numpy": NumpyKernels, "torch": TorchKernels, "compiled": CompiledKernels}
        kernels = kinds[kind](optimizer)
    shard = Shard(memory, optimizer, kernels=kernels, ranges=RANGES)
    for number in range(PUSHES):
        shard.apply(offer(memory, number))
    memory.close()
    return contents(memory)


def contents(memory: ShardMemory) -> tuple[bytes, bytes, list[int]]:
    return memory.parameters.tobytes(), memory.states.tobytes(), memory.chunks.tolist()


def answered(memory: ShardMemory, slot: int) -> bool:
    return bool(memory.slots[slot, Slot.ANSWERED] == memory.slots[slot, Slot.OFFERED])


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not happened():
        assert time.monotonic() < deadline
        os.sched_yield()


@pytest.mark.parametrize("case", CASES)
def test_killed_servers_leave_the_bits_of_an_undisturbed_run(servers: Servers, case: str) -> None:
    memory, dice, interrupted = servers.memories[case], random.Random(case), 0
    header = memory.header
    for number in range(PUSHES):
        slot = offer(memory, number)
        for _ in range(KILLS_OF_A_PUSH[number % len(KILLS_OF_A_PUSH)]):
            servers.start(case, life_seconds=dice.uniform(1e-6, LONGEST_LIFE_SECONDS))
            servers.ended(signal.SIGALRM)
            interrupted += int(header[Header.INTENT])
        servers.start(case)
        wait_for(partial(answered, memory, slot))
        servers.kill()
    assert contents(memory) == undisturbed(case)
    assert header[Header.VERSION] == PUSHES
    assert header[Header.REFUSED] == 0
    assert interrupted > 0
