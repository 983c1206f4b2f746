"""Kernels of PyTorch as they are probed: each runs, and is what its name and size say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from leptonai.compute.probe_cases import KernelCase, kernel_cases
from leptonai.core.errors import InputError
from leptonai.training.pytorch.probe import TorchKernels

KERNELS = TorchKernels(threads=1)
SMALL = [case for case in kernel_cases() if case.flops < 5e7]


@pytest.mark.parametrize(
    "case", SMALL, ids=lambda case: f"{case.kind}-{case.dims}-{case.precision}-{case.backward}"
)
def test_each_small_case_runs(case: KernelCase) -> None:
    call, copies = KERNELS.prepare(case)
    call()
    assert copies == 1


@pytest.mark.parametrize("layout", ["nn", "nt", "tn"])
def test_a_product_has_the_shape_of_its_dims_in_every_layout(layout: str) -> None:
    case = KernelCase(kind="matmul", dims=(3, 5, 7), layout=layout)  # type: ignore[arg-type]
    found = KERNELS.prepare(case)[0]()
    assert isinstance(found, torch.Tensor)
    assert found.shape == (3, 7)


def test_a_convolution_keeps_its_positions_and_has_both_gradients() -> None:
    dims = (2, 4, 6, 9, 49, 1)
    forward = KERNELS.prepare(KernelCase(kind="convolution", dims=dims))[0]()
    assert isinstance(forward, torch.Tensor)
    assert forward.shape == (2, 6, 7, 7)
    made: Any = KERNELS.prepare(KernelCase(kind="convolution", dims=dims, backward=True))[0]()
    inputs, weights, bias = made
    assert inputs.shape == (2, 4, 7, 7)
    assert weights.shape == (6, 4, 3, 3)
    assert bias is None
    data = KernelCase(kind="convolution", dims=(2, 3, 6, 9, 49, 1), backward=True)
    assert KERNELS.prepare(data)[0]()[0] is None  # type: ignore[index]


def test_a_chain_has_as_many_operations_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    forward, both = KERNELS.chain(12)
    value = forward()
    assert isinstance(value, torch.Tensor)
    count, node = 0, value.grad_fn
    while node is not None and type(node).__name__ == "MulBackward0":
        count, node = count + 1, node.next_functions[0][0]
    assert count == 12
    both()


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(InputError, match="float8"):
        KERNELS.prepare(KernelCase(kind="matmul", dims=(2, 2, 2), precision="float8"))
