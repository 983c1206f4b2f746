"""Traces of whole networks: published FLOPs, transformers in six numbers, and billions of weights in no memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from leptonai.compute.transformer import Transformer
from leptonai.compute.transformer_workload import workload_of
from leptonai.training.pytorch.trace import trace
from leptonai.training.traced import DENSE, Trace


class Residual(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(out)
        self.second = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(out)
        same = stride == 1 and channels == out
        self.skip = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second_norm(self.second(functional.relu(self.first_norm(self.first(x)))))
        return functional.relu(y + self.skip(x))


def resnet18() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    channels = 64
    for out, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        layers.append(Residual(channels, out, stride))
        channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


class Layer(nn.Module):
    def __init__(self, shape: Transformer, fused: bool) -> None:
        super().__init__()
        h, self.heads, self.fused = shape.hidden, shape.num_heads, fused
        self.norm, self.qkv, self.projection = nn.LayerNorm(h), nn.Linear(h, 3 * h), nn.Linear(h, h)
        self.norm2, self.up, self.down = nn.LayerNorm(h), nn.Linear(h, shape.width), nn.Linear(shape.width, h)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, h = x.shape
        q, k, v = (
            part.view(batch, tokens, self.heads, -1).transpose(1, 2)
            for part in self.qkv(self.norm(x)).chunk(3, -1)
        )
        if self.fused:
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            mixed = torch.softmax(q @ k.transpose(2, 3) / 8.0, dim=-1) @ v
        x = x + self.projection(mixed.transpose(1, 2).reshape(batch, tokens, h))
        found = x + self.down(functional.gelu(self.up(self.norm2(x))))
        assert isinstance(found, torch.Tensor)
        return found


class Gpt(nn.Module):
    def __init__(self, shape: Transformer, *, fused: bool = False) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.positions = nn.Embedding(shape.sequence, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape, fused) for _ in range(shape.num_layers))
        self.norm = nn.LayerNorm(shape.hidden)
        self.head = nn.Linear(shape.hidden, shape.vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for layer in self.layers:
            x = layer(x)
        logits = self.head(self.norm(x))
        assert isinstance(logits, torch.Tensor)
        return logits


def next_token(model: nn.Module, columns: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return functional.cross_entropy(model(columns[0]).flatten(0, 1), columns[1].flatten())


def traced_gpt(shape: Transformer, *, fused: bool = False) -> Trace:
    with torch.device("meta"):
        model = Gpt(shape, fused=fused)
        columns = [torch.empty(1, shape.sequence, dtype=torch.long) for _ in range(2)]
    return trace(model, columns, next_token)


def test_resnet_18_has_its_published_cost() -> None:
    """1.8 GFLOPs (multiply-adds), He et al. 2016, table 1; 11.69 million parameters, torchvision."""
    columns = [torch.empty(1, 3, 224, 224, device="meta")]
    found = trace(resnet18(), columns, lambda model, batch: model(batch[0]).mean())
    forward = sum(o.calls * o.flops[1] for o in found.operations if o.kind in DENSE and not o.backward)
    assert forward / 2e9 == pytest.approx(1.8, rel=0.02)
    assert found.num_parameters == 11_689_512
    assert sum(layer.num_parameters for layer in found.layers) == found.num_parameters


@pytest.mark.parametrize(
    "shape",
    [
        Transformer(num_layers=2, hidden=256, num_heads=4, sequence=128, vocabulary=1000),
        Transformer(num_layers=2, hidden=128, num_heads=8, sequence=512, vocabulary=300, feed_forward=384),
    ],
)
def test_six_numbers_say_what_tracing_finds(shape: Transformer) -> None:
    found = traced_gpt(shape)
    told = workload_of(shape, global_batch_size=8, total_steps=10)
    assert found.num_parameters == told.num_parameters
    assert found.num_tensors == told.num_tensors
    assert told.flops_per_example == pytest.approx(found.flops()[1], rel=0.02)
    assert found.flops()[0] == 0
    products = {(o.backward, o.dims) for o in found.operations if o.kind == "matmul"}
    for operation in told.operations:
        if operation.kind == "matmul":
            batch, m, k, n = operation.dims
            # Which factor a gradient takes first is the framework's choice.
            assert {(operation.backward, (batch, m, k, n)), (operation.backward, (batch, n, k, m))} & products
    moved = [
        sum(o.calls * o.at(o.bytes_moved, 8) for o in operations)
        for operations in (found.operations, workload_of(shape, global_batch_size=8, total_steps=1,
                                                         bytes_per_number=4).operations)
    ]  # fmt: skip
    assert moved[1] == pytest.approx(moved[0], rel=0.35)  # copies and reshapes are the framework's own


def test_billions_of_weights_are_traced_in_no_memory() -> None:
    shape = Transformer(num_layers=6, hidden=8192, num_heads=64, sequence=2048, vocabulary=50257)
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        pytest.skip("the peak of resident memory is read from /proc")
    traced_gpt(Transformer(num_layers=1, hidden=64, num_heads=2, sequence=8, vocabulary=10), fused=True)
    clear.write_text("5")  # the peak so far is forgotten
    before = _peak_bytes()
    found = traced_gpt(shape, fused=True)
    assert found.num_parameters == shape.num_parameters > 4e9
    assert _peak_bytes() - before < 200e6


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
