"""A parameter server on ``torch.distributed.rpc``, as its tutorial has it: one server, one worker, TensorPipe.

The worker calls a function on the server with the gradient; the server's optimiser takes a step; the call
returns the parameters. Run as ``python -m benchmarks.peers.rpc_parameter_server``; its words are those of
:mod:`benchmarks.rounds`. ``TP_SOCKET_IFNAME=lo`` keeps it on loopback.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.distributed.rpc as rpc
import torch.multiprocessing

from benchmarks.parameter_server_work import GRADIENT, LEARNING_RATE, MOMENTUM, START, check
from benchmarks.rounds import Rounds, read_words, time_rounds

SERVER, WORKER = "server", "worker"


class Server:
    """The parameters and their optimiser, in the server's process."""

    def __init__(self, elements: int) -> None:
        self.parameters = torch.nn.Parameter(torch.full((elements,), START))
        self.optimizer = torch.optim.SGD([self.parameters], lr=LEARNING_RATE, momentum=MOMENTUM, fused=True)

    def push_pull(self, gradient: torch.Tensor) -> torch.Tensor:
        """Take a step and return the parameters."""
        self.parameters.grad = gradient
        self.optimizer.step()
        return self.parameters.detach()


server: Server | None = None


def push_pull(gradient: torch.Tensor) -> torch.Tensor:
    """What the worker calls."""
    assert server is not None
    return server.push_pull(gradient)


def options(meeting: str) -> rpc.TensorPipeRpcBackendOptions:
    """Where the two processes find each other; generous time limits."""
    return rpc.TensorPipeRpcBackendOptions(init_method=meeting, rpc_timeout=120.0)


def serve(elements: int, meeting: str) -> None:
    """The server's process: there until the worker is done."""
    global server
    torch.set_num_threads(1)
    server = Server(elements)
    rpc.init_rpc(SERVER, rank=0, world_size=2, rpc_backend_options=options(meeting))  # type: ignore[no-untyped-call]
    rpc.shutdown()


def work(asked: Rounds) -> None:
    """The worker's process."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="rpc") as folder:
        meeting = (Path(folder) / "meeting").as_uri()
        process = torch.multiprocessing.get_context("spawn").Process(
            target=serve, args=(asked.elements, meeting), daemon=True
        )
        process.start()
        rpc.init_rpc(WORKER, rank=1, world_size=2, rpc_backend_options=options(meeting))  # type: ignore[no-untyped-call]
        gradient = torch.full((asked.elements,), GRADIENT)
        found = torch.empty(0)

        def round_() -> None:
            nonlocal found
            found = rpc.rpc_sync(SERVER, push_pull, args=(gradient,))

        time_rounds(round_, asked)
        check(found.numpy(), asked.warm + asked.rounds)
        rpc.shutdown()
        process.join()


if __name__ == "__main__":
    # By its importable name, because the calls name their functions by module.
    from benchmarks.peers import rpc_parameter_server

    rpc_parameter_server.work(read_words())
