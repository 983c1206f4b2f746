"""Traced costs of known layers against counts made by hand, and of whole passes against PyTorch's own counter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from leptonai.compute.workload import Operation
from leptonai.core.errors import InputError
from leptonai.training.data.dataset import Arrays, Data
from leptonai.training.job import TrainJob
from leptonai.training.pytorch.profile import profile
from leptonai.training.pytorch.trace import trace, trace_real
from leptonai.training.traced import DENSE, Trace

FLOAT = 4


def mean(model: nn.Module, columns: tuple[torch.Tensor, ...]) -> torch.Tensor:
    output = model(*columns)
    return (output[0] if isinstance(output, tuple) else output).mean()


def traced(model: nn.Module, *shapes: tuple[int, ...], **options: Any) -> Trace:
    return trace(model, [torch.empty(1, *shape, device="meta") for shape in shapes], mean, **options)


def of(found: Trace, kind: str, *, backward: bool, layer: str | None = None) -> list[Operation]:
    return [
        operation
        for operation in found.operations
        if operation.kind == kind and operation.backward == backward and layer in (None, operation.layer)
    ]


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.1),
        nn.Conv2d(6, 8, 3, stride=2), nn.GELU(), nn.Flatten(), nn.LayerNorm(8 * 9), nn.Linear(8 * 9, 10),
    )  # fmt: skip


def test_a_linear_layer_by_hand() -> None:
    found = traced(nn.Linear(6, 5), (6,))
    (forward,) = of(found, "matmul", backward=False)
    assert forward.dims == ((1, 0), (0, 1), (6, 0), (5, 0))
    assert forward.flops == (0, 2 * 6 * 5)
    # Weight and bias, once for any batch; input and output of each example.
    assert forward.bytes_moved == (FLOAT * (6 * 5 + 5), FLOAT * (6 + 5))
    (weight,) = of(found, "matmul", backward=True)  # the input needs no gradient
    assert weight.dims == ((1, 0), (5, 0), (0, 1), (6, 0))
    assert weight.bytes_moved == (FLOAT * 6 * 5, FLOAT * (6 + 5))
    assert (found.num_parameters, found.num_tensors, found.parameter_bytes) == (35, 2, 140)
    assert found.activation_bytes == (0, FLOAT * 6)
    assert [(layer.kind, layer.num_parameters, layer.output_bytes) for layer in found.layers] == [
        ("Linear", 35, (0, FLOAT * 5))
    ]


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_a_convolution_with_groups_and_stride_by_hand(groups: int) -> None:
    model = nn.Sequential(nn.Identity(), nn.Conv2d(6, 12, 3, stride=2, groups=groups))
    found = trace(
        model, [torch.empty(1, 6, 11, 9)], lambda m, columns: m(columns[0].requires_grad_()).square().mean()
    )
    (forward,) = of(found, "convolution", backward=False)
    (backward,) = of(found, "convolution", backward=True)
    flops = 2 * (5 * 4) * 12 * (6 // groups) * 9
    assert forward.dims == ((0, 1), (6, 0), (12, 0), (9, 0), (20, 0), (groups, 0))
    assert forward.flops == (0, flops)
    assert backward.flops == (0, 2 * flops)  # gradients of the input and of the kernel
    kernel = FLOAT * (12 * 6 // groups * 9 + 12)
    assert forward.bytes_moved == (kernel, FLOAT * (6 * 11 * 9 + 12 * 20))
    assert (forward.layer, backward.layer) == ("1", "1")


def test_a_transposed_convolution_applies_its_kernel_at_each_input() -> None:
    found = traced(nn.ConvTranspose2d(4, 6, 3, stride=2), (4, 5, 5))
    (forward,) = of(found, "convolution", backward=False)
    assert forward.flops == (0, 2 * 25 * 4 * 6 * 9)
    assert forward.dims == ((0, 1), (4, 0), (6, 0), (9, 0), (25, 0), (1, 0))


def test_attention_by_hand() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output, _ = self.attention(x, x, x, need_weights=False)
            assert isinstance(output, torch.Tensor)
            return output

    found = traced(Attention(), (5, 8))
    maps, product = 2 * 5 * 8 * (3 * 8 + 8), 2 * 2 * 5 * 5 * 4
    (fused,) = of(found, "attention", backward=False)
    assert fused.flops == (0, 2 * product)
    assert fused.dims == ((0, 2), (5, 0), (4, 0), (5, 0))
    (gradient,) = of(found, "attention", backward=True)
    assert gradient.flops == (0, 5 * product)  # the scores are computed again
    forward = sum(o.calls * o.flops[1] for o in found.operations if o.kind in DENSE and not o.backward)
    assert forward == maps + 2 * product
    assert {operation.layer for operation in found.operations if operation.kind in DENSE} == {"attention"}
    # The output map's weight is used by the attention; its module never runs, and is listed beside it.
    assert [(layer.name, layer.num_parameters) for layer in found.layers] == [
        ("attention", 3 * 8 * 8 + 3 * 8), ("attention.out_proj", 8 * 8 + 8)
    ]  # fmt: skip


def test_an_embedding_reads_its_rows_and_writes_its_table() -> None:
    model = nn.Embedding(1000, 16)
    found = trace(model, [torch.zeros(1, 3, dtype=torch.long)], mean)
    (forward,) = of(found, "gather", backward=False)
    (backward,) = of(found, "gather", backward=True)
    rows, indices = FLOAT * 3 * 16, 8 * 3
    assert forward.bytes_moved == (0, 2 * rows + indices)
    assert backward.bytes_moved == (FLOAT * 1000 * 16, rows + indices)
    assert found.flops() == (0, 0)
    assert found.activation_bytes == (0, indices)


def test_recurrent_layers_count_each_step() -> None:
    found = traced(nn.LSTM(3, 4, batch_first=True), (5, 3))
    (forward,) = of(found, "recurrence", backward=False)
    assert forward.flops == (0, 2 * 5 * (3 + 4) * 16)
    assert forward.dims == ((5, 0), (0, 1), (7, 0), (16, 0))
    (backward,) = of(found, "recurrence", backward=True)
    assert backward.flops == (0, 2 * 2 * 5 * (3 + 4) * 16)
    looped = traced(nn.GRU(3, 4, batch_first=True), (5, 3))
    assert sum(o.flops[1] * o.calls for o in of(looped, "matmul", backward=False)) == 2 * 5 * (3 + 4) * 12


def test_element_wise_work_and_views() -> None:
    found = traced(nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Unflatten(1, (2, 6)), nn.Linear(6, 6)), (3, 4))
    (relu,) = of(found, "elementwise", backward=False)
    assert (relu.layer, relu.flops, relu.bytes_moved) == ("1", (0, 12), (0, 2 * FLOAT * 12))
    assert not [operation for operation in found.operations if operation.layer in ("0", "2")]


def test_what_is_kept_for_the_backward_pass_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 36, 4))
    found = traced(model, (3, 8, 8))
    kept = {layer.name: layer.activation_bytes for layer in found.layers}
    # The convolution keeps its input, ReLU its output; flattening it is the same memory, which Linear keeps too.
    assert kept == {"0": (0, FLOAT * 192), "1": (0, FLOAT * 180), "2": (0, 0), "3": (0, 0)}
    assert found.activation_bytes == (0, FLOAT * (192 + 180))


def test_flops_are_those_pytorch_counts_on_real_tensors() -> None:
    model, columns = conv_net(), (torch.randn(4, 3, 14, 14),)
    with FlopCounterMode(display=False) as counter:
        mean(model, columns).backward()
    fixed, slope = trace(model, columns, mean).flops()
    assert fixed + 4 * slope == counter.get_total_flops()


def test_tracing_finds_what_a_real_pass_finds() -> None:
    model, columns = conv_net(), (torch.randn(4, 3, 14, 14),)
    assert trace(model, columns, mean) == trace_real(model, columns, mean)


@pytest.mark.parametrize("build", [conv_net, lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)])
def test_two_batch_sizes_predict_a_third_exactly(build: Callable[[], nn.Module]) -> None:
    model = build()
    shape = (3, 14, 14) if isinstance(model, nn.Sequential) else (7, 8)
    found, other = traced(model, shape), traced(model, shape, sizes=(7, 13))
    for operation, same in zip(found.operations, other.operations, strict=True):
        for quantity in ("flops", "bytes_moved"):
            values = getattr(operation, quantity), getattr(same, quantity)
            assert operation.at(values[0], 7) == same.at(values[1], 7)
        for dim, same_dim in zip(operation.dims, same.dims, strict=True):
            assert operation.at(dim, 7) == same.at(same_dim, 7)
        assert operation.calls == same.calls
    assert found.activation_bytes == other.activation_bytes


def test_gradients_belong_to_the_layer_that_made_the_value() -> None:
    found = traced(
        nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Tanh(), nn.Linear(4, 6)), nn.Linear(6, 2)), (4,)
    )
    # Three products each, but no gradient of the first layer's input.
    assert found.flops("0") == (0, 2 * 2 * 16)
    assert found.flops("1.1") == (0, 3 * 2 * 24)
    assert found.flops("2") == (0, 3 * 2 * 12)
    assert [o.layer for o in of(found, "elementwise", backward=True) if o.layer] == ["1.0"]
    assert [layer.name for layer in found.layers] == ["0", "1.0", "1.1", "2"]


def test_recomputation_is_seen_as_backward_work_that_keeps_less() -> None:
    class Deep(nn.Module):
        def __init__(self, again: bool) -> None:
            super().__init__()
            self.again = again
            self.first = nn.Linear(4, 4)
            self.inner = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            found = checkpoint(self.inner, x, use_reentrant=False) if self.again else self.inner(x)
            assert isinstance(found, torch.Tensor)
            return found

    plain, again = traced(Deep(False), (4,)), traced(Deep(True), (4,))
    assert again.flops("inner.0")[1] == plain.flops("inner.0")[1] + 2 * 4 * 8
    assert again.activation_bytes[1] < plain.activation_bytes[1]


def test_a_tied_weight_counts_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
            self.head.weight = self.table.weight

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            found = self.head(self.table(tokens))
            assert isinstance(found, torch.Tensor)
            return found

    found = trace(Tied(), [torch.zeros(1, 3, dtype=torch.long)], mean)
    assert (found.num_parameters, found.num_tensors) == (40, 1)
    assert [layer.num_parameters for layer in found.layers] == [40, 0]


def test_tracing_leaves_the_model_as_it_was() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last, self.constant = conv_net(), None, torch.ones(1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.last = found = self.inner(x) * self.constant
            assert isinstance(found, torch.Tensor)
            return found

    model = Remembers()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = list(model.parameters())
    traced(model, (3, 14, 14))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert model.last is None
    assert all(parameter.grad is None for parameter in parameters)


def test_parameters_that_the_loss_does_not_reach_are_named() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2)})
    found = trace(model, [torch.empty(1, 2)], lambda m, columns: m["used"](columns[0]).mean())
    assert found.unused_parameters == ("unused.weight", "unused.bias")


class LooksAtValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.linear(x[x.sum(1) > -1e9])
        assert isinstance(found, torch.Tensor)
        return found


def test_a_model_that_looks_at_values_is_refused_and_run_for_real() -> None:
    with pytest.raises(InputError, match="cannot be traced without values"):
        traced(LooksAtValues(), (3,))
    data = Data(train=Arrays(np.ones((8, 3), np.float32), np.zeros((8, 2), np.float32)))
    job = TrainJob(model=LooksAtValues, data=data, loss="mse", epochs=1, global_batch_size=4)
    work, _ = profile(job, data, LooksAtValues())
    assert work.flops_per_example == 2 * 2 * 3 * 2
    assert any(operation.kind == "matmul" for operation in work.operations)


def test_calls_that_depend_on_the_batch_are_refused() -> None:
    def loss(model: Any, columns: tuple[torch.Tensor, ...]) -> torch.Tensor:
        total: torch.Tensor = sum(model(row).mean() for row in columns[0])  # type: ignore[assignment]
        return total

    with pytest.raises(InputError, match="other calls for 4 examples than for 2"):
        trace(nn.Linear(3, 2), [torch.empty(1, 3)], loss)
    found = trace_real(nn.Linear(3, 2), [torch.ones(4, 3)], loss)
    assert not found.exact
    assert found.flops() == (0, 2 * 2 * 3 * 2)


def test_a_job_s_workload_holds_operations_tensors_and_input_bytes() -> None:
    data = Data(train=Arrays(np.zeros((8, 3, 14, 14), np.float32), np.zeros(8, np.int64)))
    job = TrainJob(model=conv_net, data=data, loss="cross_entropy", epochs=1, global_batch_size=4)
    work, _ = profile(job, data, conv_net())
    assert (work.num_tensors, work.input_bytes_per_example) == (10, FLOAT * 3 * 14 * 14 + 8)
    dense = sum(o.calls * o.at(o.flops, 4) for o in work.operations if o.kind in DENSE)
    assert dense == 4 * work.flops_per_example
    assert type(work).from_json(work.to_json()) == work


def test_cross_entropy_is_not_taken_for_a_layer() -> None:
    found = trace(
        nn.Sequential(nn.Linear(3, 2)),
        [torch.empty(1, 3), torch.empty(1, dtype=torch.long)],
        lambda m, columns: functional.cross_entropy(m(columns[0]), columns[1]),
    )
    assert [layer.name for layer in found.layers] == ["0"]
    assert of(found, "reduction", backward=False, layer="")
