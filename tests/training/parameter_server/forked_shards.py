"""Servers to kill: one warm process that forks a server for each line it reads.

A line holds the descriptor of a shard's memory, the optimiser's name and settings, the kernels' name, and how
long the server lives once it changes things, as JSON. The answer is the server's process id, and once it is
dead its status. Run as a script.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

import torch

from leptonai.training import optimizers
from leptonai.training.parameter_server.compiled_kernels import CompiledKernels
from leptonai.training.parameter_server.memory import ShardMemory
from leptonai.training.parameter_server.numpy_kernels import NumpyKernels
from leptonai.training.parameter_server.shard import Shard
from leptonai.training.parameter_server.torch_kernels import TorchKernels

LONGEST_LIFE_SECONDS = 60.0  # should the test that is to kill it be gone


def serve(order: dict[str, Any]) -> None:
    """Apply whatever comes, until killed."""
    torch.set_num_threads(1)
    optimizer = getattr(optimizers, order["optimizer"])(**order["options"])
    memory = ShardMemory.attach(order["fd"])
    ranges = [tuple(pair) for pair in order["ranges"]]
    if order["kernels"] == "lamb":
        shard = Shard(memory, optimizer, ranges=ranges)
    else:
        kind = {"numpy": NumpyKernels, "torch": TorchKernels, "compiled": CompiledKernels}[order["kernels"]]
        shard = Shard(memory, optimizer, kernels=kind(optimizer))
    if order["life_seconds"]:
        end_after(shard, order["life_seconds"])
    shard.recover()
    deadline = time.monotonic() + LONGEST_LIFE_SECONDS
    while time.monotonic() < deadline:
        for slot in shard.pending():
            shard.apply(slot)
        os.sched_yield()


def end_after(shard: Shard, seconds: float) -> None:
    """From when it first may change parameters on, the process has ``seconds``, whatever it does then."""
    log: Any = shard._log
    for name in ("undo_half_done", "open_chunk", "open_blocks"):
        change = getattr(log, name)

        def armed(*arguments: Any, change: Any = change) -> Any:
            if not any(signal.getitimer(signal.ITIMER_REAL)):
                signal.setitimer(signal.ITIMER_REAL, seconds)
            return change(*arguments)

        setattr(log, name, armed)


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                serve(json.loads(line))
            finally:
                os._exit(3)
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    main()
