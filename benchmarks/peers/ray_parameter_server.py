"""A parameter server on Ray, as its own example has it: an actor with the parameters, and one worker.

``apply_gradients`` takes a step and returns the new parameters, which the worker reads in place in Ray's object
store. Run as ``python -m benchmarks.peers.ray_parameter_server``; its words are those of
:mod:`benchmarks.rounds`. Ray lives and ends with this process.
"""

from __future__ import annotations

import os
import secrets
import tempfile

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.parameter_server_work import LEARNING_RATE, MOMENTUM, START, check, gradient
from benchmarks.rounds import Rounds, read_words, time_rounds

STORE_BYTES = 2 * 2**30


class ParameterServer:
    """The actor."""

    def __init__(self, elements: int) -> None:
        torch.set_num_threads(1)
        self.parameters = torch.nn.Parameter(torch.full((elements,), START))
        self.optimizer = torch.optim.SGD([self.parameters], lr=LEARNING_RATE, momentum=MOMENTUM, fused=True)

    def apply_gradients(self, *gradients: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take a step with the sum of the gradients and return the parameters."""
        # One gradient needs no sum; Ray hands it over read-only, which the optimiser respects.
        total = gradients[0] if len(gradients) == 1 else np.sum(gradients, axis=0)
        self.parameters.grad = torch.from_numpy(total)
        self.optimizer.step()
        return self.get_weights()

    def get_weights(self) -> NDArray[np.float32]:
        """The parameters."""
        return self.parameters.detach().numpy()


def main(asked: Rounds) -> None:
    """Start a Ray of our own on loopback, work on it, end it."""
    os.environ.update(
        RAY_USAGE_STATS_ENABLED="0",
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=secrets.token_hex(32),
    )
    import ray

    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=STORE_BYTES,
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
        )
        try:
            server = ray.remote(ParameterServer).options(num_cpus=1).remote(asked.elements)
            mine = gradient(asked.elements)
            found = ray.get(server.get_weights.remote())

            def round_() -> None:
                nonlocal found
                found = ray.get(server.apply_gradients.remote(mine))

            time_rounds(round_, asked)
            check(found, asked.warm + asked.rounds)
            ray.kill(server)
        finally:
            ray.shutdown()


if __name__ == "__main__":
    from benchmarks.peers import ray_parameter_server

    ray_parameter_server.main(read_words())
