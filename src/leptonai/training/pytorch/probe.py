"""The kernels of PyTorch as a probe times them: made ready here, called by whoever holds the clock.

On a GPU a call ends with a synchronisation, so that what is timed is the kernel and not its launch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from leptonai.compute.probe_cases import DATA_CHANNELS, KernelCase
from leptonai.core.errors import InputError

Call = Callable[[], object]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Rows of a table that rows are fetched from: as many as a small vocabulary has.
GATHER_TABLE_ROWS = 16_384
# A sum over the last dimension, as losses and normalisations do: this long.
REDUCED_LENGTH = 256


class TorchKernels:
    """Makes calls of PyTorch's kernels.

    Args:
        threads: compute threads of this process.
        device: ``cpu`` or ``cuda``.
    """

    name = "pytorch"

    def __init__(self, *, threads: int, device: str = "cpu") -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self._device = torch.device(device)

    @property
    def versions(self) -> dict[str, str]:
        """What computes."""
        return {"torch": torch.__version__}

    def prepare(self, case: KernelCase) -> tuple[Call, int]:
        """A call that runs a kernel on data of its own, and how many times it does: once.

        Raises:
            InputError: a precision this probe does not know.
        """
        if case.precision not in DTYPES:
            raise InputError(f"precision {case.precision!r} cannot be probed", hint="float32 or bfloat16")
        make = {
            "matmul": self._matmul,
            "batched_matmul": self._batched_matmul,
            "convolution": self._convolution,
            "elementwise": self._over_memory,
            "reduction": self._over_memory,
            "copy": self._over_memory,
            "gather": self._gather,
            "update_momentum": self._update,
            "update_adam": self._update,
        }[case.kind]
        return self._waited(make(case)), 1

    def empty(self) -> None:
        """Nothing: training calls each kernel from Python too."""

    def chain(self, length: int) -> tuple[Call, Call]:
        """A forward pass of this many smallest operations in a row, and one with its backward pass."""
        start = torch.ones(1, device=self._device, requires_grad=True)
        factor = torch.ones(1, device=self._device)

        def forward() -> torch.Tensor:
            x = start
            for _ in range(length):
                x = torch.mul(x, factor)
            return x

        def both() -> None:
            forward().backward()
            start.grad = None

        return self._waited(forward), self._waited(both)

    def _random(self, *shape: int, precision: str = "float32") -> torch.Tensor:
        return torch.rand(*shape, device=self._device).to(DTYPES[precision])

    def _waited(self, call: Call) -> Call:
        if self._device.type != "cuda":
            return call

        def waited() -> None:
            call()
            torch.cuda.synchronize(self._device)

        return waited

    def _matmul(self, case: KernelCase) -> Call:
        m, k, n = case.dims
        left = self._random(k, m, precision=case.precision).t() if case.layout == "tn" else None
        left = self._random(m, k, precision=case.precision) if left is None else left
        right = self._random(n, k, precision=case.precision).t() if case.layout == "nt" else None
        right = self._random(k, n, precision=case.precision) if right is None else right
        return lambda: torch.mm(left, right)

    def _batched_matmul(self, case: KernelCase) -> Call:
        batch, m, k, n = case.dims
        left, right = self._random(batch, m, k), self._random(batch, k, n)
        return lambda: torch.bmm(left, right)

    def _convolution(self, case: KernelCase) -> Call:
        images, channels, outputs, kernel, positions, groups = case.dims
        side, width = math.isqrt(kernel), math.isqrt(positions)
        padding = side // 2
        x = self._random(images, channels, width, width, precision=case.precision)
        weights = self._random(outputs, channels // groups, side, side, precision=case.precision)
        if not case.backward:
            return lambda: F.conv2d(x, weights, padding=padding, groups=groups)
        grads = self._random(images, outputs, width, width, precision=case.precision)
        mask = [channels > DATA_CHANNELS, True, False]
        pads, ones = [padding, padding], [1, 1]
        return lambda: torch.ops.aten.convolution_backward(
            grads, x, weights, None, ones, pads, ones, False, [0, 0], groups, mask
        )

    def _over_memory(self, case: KernelCase) -> Call:
        x = self._random(case.dims[0], precision=case.precision)
        if case.kind == "copy":
            return x.clone
        if case.kind == "reduction":
            rows = x.view(-1, min(REDUCED_LENGTH, case.dims[0]))
            return lambda: rows.sum(dim=-1)
        y = self._random(case.dims[0], precision=case.precision)
        return lambda: torch.add(x, y)

    def _gather(self, case: KernelCase) -> Call:
        rows, width = case.dims
        table = self._random(GATHER_TABLE_ROWS, width)
        which = torch.randint(0, GATHER_TABLE_ROWS, (rows,), device=self._device)
        return lambda: F.embedding(which, table)

    def _update(self, case: KernelCase) -> Call:
        tensors, elements = case.dims
        parameters = [torch.nn.Parameter(self._random(elements // tensors)) for _ in range(tensors)]
        for parameter in parameters:
            parameter.grad = torch.rand_like(parameter)
        # Fused, as training makes them.
        optimizer: torch.optim.Optimizer = (
            torch.optim.Adam(parameters, lr=1e-3, fused=True)
            if case.kind == "update_adam"
            else torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, fused=True)
        )
        return optimizer.step
