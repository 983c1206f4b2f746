"""Every layer type that can be trained privately, with the options that change how its gradients are found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leptonai.security.privacy.pytorch.lora import add_lora

Build = Callable[[], nn.Module]
Draw = Callable[[int, torch.Generator], tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class LayerCase:
    """A model and what it takes.

    Args:
        name: of the layer type and its options.
        build: the model; its parameters are drawn from PyTorch's own generator.
        draw: inputs for so many examples, each with the examples first.
    """

    name: str
    build: Build
    draw: Draw


class Call(nn.Module):
    """A layer, called in its own way: so that a table can say how."""

    def __init__(self, layer: nn.Module, how: Callable[..., Tensor]) -> None:
        super().__init__()
        self.layer = layer
        self.how = how

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.how(self.layer, *inputs)


class Scale(nn.Module):
    """Raw parameters, as many models have: a scale, a shift, and a token put before the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(5) + 0.5)
        self.shift = nn.Parameter(torch.zeros(5))
        self.token = nn.Parameter(torch.randn(1, 1, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        return torch.tanh(x * self.scale + self.shift)


class Branching(nn.Module):
    """Control flow on the data, which cannot be vectorised."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 5)
        self.gain = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(
            [self.gain * (self.inner(each) if each.sum() > 0 else each * each) for each in torch.split(x, 1)]
        )


class Bias(nn.Module):
    """Nothing but a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x + self.bias)


class Tied(nn.Module):
    """A language model in small: the output layer's weight is the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.out = nn.Linear(4, 7)
        self.out.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.out(torch.tanh(self.embedding(ids)))
        return found


class Adapted(nn.Module):
    """Two linear layers of which one has an adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 5), nn.Linear(5, 3)
        add_lora(self, 2, ["body"], alpha=4.0, train=["head"])
        nn.init.normal_(self.get_submodule("body.up").weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(torch.tanh(self.body(x)))
        return found


def _reals(*shape: int) -> Draw:
    return lambda num, generator: (torch.randn(num, *shape, generator=generator),)


def _ids(high: int, *shape: int) -> Draw:
    return lambda num, generator: (torch.randint(0, high, (num, *shape), generator=generator),)


def _both(*draws: Draw) -> Draw:
    return lambda num, generator: tuple(each for draw in draws for each in draw(num, generator))


def _frozen(layer: nn.Module, *names: str) -> nn.Module:
    for name in names:
        layer.get_parameter(name).requires_grad_(False)
    return layer


def _second(layer: nn.Module, x: Tensor) -> Tensor:
    """Call a layer that wants the examples in dimension 1; (B, T, features) in and out."""
    found: Tensor = layer(x.transpose(0, 1))[0]
    return found.transpose(0, 1)


def _all_outputs(layer: nn.Module, x: Tensor) -> Tensor:
    """Outputs and last states of a recurrent layer, side by side."""
    out, states = layer(x)
    states = states if isinstance(states, tuple) else (states,)
    return torch.cat([out.flatten(1), *(each.transpose(0, 1).flatten(1) for each in states)], dim=1)


def layer_cases() -> tuple[LayerCase, ...]:
    """All cases: every layer type, and every option that changes how its gradients are found."""
    return (
        *_plain_cases(), *_embedding_cases(), *_norm_cases(), *_attention_cases(), *_recurrent_cases(),
        *_other_cases(),
    )  # fmt: skip


def _plain_cases() -> list[LayerCase]:
    return [
        LayerCase("Linear", lambda: nn.Linear(6, 4), _reals(6)),
        LayerCase("Linear without bias", lambda: nn.Linear(6, 4, bias=False), _reals(6)),
        LayerCase("Linear on sequences", lambda: nn.Linear(6, 4), _reals(5, 6)),
        LayerCase("Linear on long sequences", lambda: nn.Linear(3, 2), _reals(40, 3)),
        LayerCase("Linear on grids", lambda: nn.Linear(6, 4), _reals(2, 3, 6)),
        LayerCase("Linear, weight frozen", lambda: _frozen(nn.Linear(6, 4), "weight"), _reals(5, 6)),
        LayerCase("Linear, bias frozen", lambda: _frozen(nn.Linear(6, 4), "bias"), _reals(5, 6)),
        LayerCase("Conv1d", lambda: nn.Conv1d(3, 4, 3, stride=2, padding=1), _reals(3, 9)),
        LayerCase("Conv2d", lambda: nn.Conv2d(3, 4, 3, padding=1), _reals(3, 6, 6)),
        LayerCase("Conv2d, stride and dilation", lambda: nn.Conv2d(3, 4, 3, 2, dilation=2), _reals(3, 9, 8)),
        LayerCase(
            "Conv2d, groups", lambda: nn.Conv2d(4, 6, (1, 3), padding=(0, 1), groups=2), _reals(4, 5, 6)
        ),
        LayerCase("Conv3d", lambda: nn.Conv3d(2, 3, 2, bias=False), _reals(2, 4, 4, 4)),
    ]


def _embedding_cases() -> list[LayerCase]:
    def weighted(layer: nn.Module, ids: Tensor, weights: Tensor) -> Tensor:
        found: Tensor = layer(ids, per_sample_weights=weights)
        return found

    def offsets(layer: nn.Module, ids: Tensor) -> Tensor:
        found: Tensor = layer(ids.flatten(), torch.arange(0, ids.numel(), ids.shape[1]))
        return found

    return [
        LayerCase("Embedding", lambda: nn.Embedding(50, 4), _ids(50, 6)),
        LayerCase("Embedding, one id", lambda: nn.Embedding(5, 4), _ids(5)),
        LayerCase("Embedding, repeated ids", lambda: nn.Embedding(3, 4), _ids(3, 9)),
        LayerCase("Embedding, padding", lambda: nn.Embedding(4, 3, padding_idx=1), _ids(4, 2, 5)),
        LayerCase("EmbeddingBag, mean", lambda: nn.EmbeddingBag(4, 3, mode="mean"), _ids(4, 6)),
        LayerCase("EmbeddingBag, sum", lambda: nn.EmbeddingBag(4, 3, mode="sum"), _ids(4, 6)),
        LayerCase("EmbeddingBag, padding", lambda: nn.EmbeddingBag(4, 3, padding_idx=0), _ids(4, 6)),
        LayerCase("EmbeddingBag, offsets", lambda: Call(nn.EmbeddingBag(4, 3), offsets), _ids(4, 6)),
        LayerCase(
            "EmbeddingBag, weights",
            lambda: Call(nn.EmbeddingBag(4, 3, mode="sum"), weighted),
            _both(_ids(4, 6), _reals(6)),
        ),
    ]


def _norm_cases() -> list[LayerCase]:
    return [
        LayerCase("LayerNorm", lambda: nn.LayerNorm(6), _reals(6)),
        LayerCase("LayerNorm on sequences", lambda: nn.LayerNorm(6), _reals(5, 6)),
        LayerCase("LayerNorm over two dimensions", lambda: nn.LayerNorm((5, 6), bias=False), _reals(3, 5, 6)),
        LayerCase("LayerNorm, weight frozen", lambda: _frozen(nn.LayerNorm(6), "weight"), _reals(5, 6)),
        LayerCase("GroupNorm", lambda: nn.GroupNorm(2, 6), _reals(6, 3, 4)),
        LayerCase("GroupNorm on vectors", lambda: nn.GroupNorm(2, 6), _reals(6)),
        LayerCase("RMSNorm", lambda: nn.RMSNorm(6), _reals(5, 6)),
        LayerCase("InstanceNorm1d", lambda: nn.InstanceNorm1d(3, affine=True), _reals(3, 7)),
        LayerCase("InstanceNorm2d", lambda: nn.InstanceNorm2d(3, affine=True), _reals(3, 4, 5)),
        LayerCase("InstanceNorm3d", lambda: nn.InstanceNorm3d(3, affine=True), _reals(3, 2, 4, 3)),
        LayerCase("PReLU", lambda: nn.PReLU(), _reals(5, 6)),
        LayerCase("PReLU a channel", lambda: nn.PReLU(5), _reals(5, 6)),
        LayerCase(
            "norm before an in-place ReLU",
            lambda: nn.Sequential(nn.GroupNorm(2, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)),
            _reals(6),
        ),
    ]


def _attention_cases() -> list[LayerCase]:
    def itself(layer: nn.Module, x: Tensor) -> Tensor:
        found: Tensor = layer(x, x, x)[0]
        return found

    def with_weights(layer: nn.Module, x: Tensor) -> Tensor:
        out, weights = layer(x, x, x, average_attn_weights=False)
        return torch.cat([out.flatten(1), weights.flatten(1)], dim=1)

    def masked(layer: nn.Module, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        padding = torch.zeros(x.shape[:2], dtype=x.dtype)
        padding[:, -1] = float("-inf")
        found: Tensor = layer(x, x, x, key_padding_mask=padding, attn_mask=mask, need_weights=False)[0]
        return found

    def other(layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        found: Tensor = layer(x, y, y, need_weights=False)[0]
        return found

    def three(layer: nn.Module, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        found: Tensor = layer(x, y, z)[0]
        return found

    def examples_second(layer: nn.Module, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        found: Tensor = layer(x, x, x)[0]
        return found.transpose(0, 1)

    def product(layer: nn.Module, x: Tensor) -> Tensor:
        q, k, v = layer(x).chunk(3, dim=-1)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def attention(**options: Any) -> nn.Module:
        layer = nn.MultiheadAttention(8, 2, **({"batch_first": True} | options))
        for name, each in layer.named_parameters():
            if "bias" in name:
                nn.init.normal_(each)
        return layer

    def encoder(**options: Any) -> nn.TransformerEncoderLayer:
        return nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, **options)

    def decoder() -> nn.Module:
        return nn.TransformerDecoderLayer(8, 2, 12, dropout=0.0, batch_first=True)

    x, longer = _reals(5, 8), _reals(6, 8)
    return [
        LayerCase("attention", lambda: Call(attention(), itself), x),
        LayerCase("attention, weights returned", lambda: Call(attention(), with_weights), x),
        LayerCase("attention, masks", lambda: Call(attention(), masked), x),
        LayerCase("attention without bias", lambda: Call(attention(bias=False), itself), x),
        LayerCase(
            "attention, examples second", lambda: Call(attention(batch_first=False), examples_second), x
        ),
        LayerCase("attention on another sequence", lambda: Call(attention(), other), _both(x, longer)),
        LayerCase("attention, three inputs", lambda: Call(attention(), three), _both(x, longer, longer)),
        LayerCase(
            "attention, separate projections",
            lambda: Call(attention(kdim=4, vdim=3), three),
            _both(x, _reals(6, 4), _reals(6, 3)),
        ),
        LayerCase(
            "attention, extra positions",
            lambda: Call(attention(add_bias_kv=True, add_zero_attn=True), masked),
            x,
        ),
        LayerCase(
            "attention, partly frozen",
            lambda: Call(_frozen(attention(), "in_proj_bias", "out_proj.weight"), other),
            _both(x, longer),
        ),
        LayerCase("scaled dot product", lambda: Call(nn.Linear(8, 12), product), x),
        LayerCase("TransformerEncoderLayer", lambda: encoder(), x),
        LayerCase("TransformerEncoderLayer, evaluated", lambda: encoder(norm_first=True).eval(), x),
        LayerCase("TransformerEncoder", lambda: nn.TransformerEncoder(encoder(), 2), x),
        LayerCase("TransformerDecoderLayer", decoder, _both(x, longer)),
    ]


def _recurrent_cases() -> list[LayerCase]:
    def given(layer: nn.Module, x: Tensor, hidden: Tensor, cell: Tensor) -> Tensor:
        found: Tensor = layer(x, (hidden.transpose(0, 1).contiguous(), cell.transpose(0, 1).contiguous()))[0]
        return found

    def last(layer: nn.Module, x: Tensor) -> Tensor:
        found: Tensor = layer(x)[1]
        return found.transpose(0, 1)

    def steps(layer: nn.Module, x: Tensor) -> Tensor:
        state: Any = None
        for each in x.unbind(1):
            state = layer(each, state)
        found: Tensor = state[0] * state[1] if isinstance(state, tuple) else state
        return found

    x, states = _reals(6, 3), _both(_reals(1, 4), _reals(1, 4))
    cases = []
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        name = kind.__name__

        def build(kind: Any = kind, **options: Any) -> nn.Module:
            layer: nn.Module = kind(3, 4, **({"batch_first": True} | options))
            return layer

        def stack(build: Callable[..., nn.Module] = build) -> nn.Module:
            return Call(build(num_layers=2, bidirectional=True), _all_outputs)

        def second(build: Callable[..., nn.Module] = build) -> nn.Module:
            return Call(build(batch_first=False, bias=False), _second)

        def cell(kind: str = name) -> nn.Module:
            return Call(getattr(nn, f"{kind}Cell")(3, 4), steps)

        cases += [
            LayerCase(name, lambda build=build: Call(build(), _all_outputs), x),  # type: ignore[misc]
            LayerCase(f"{name}, two layers, both directions", stack, x),
            LayerCase(f"{name} without bias, examples second", second, x),
            LayerCase(f"{name}Cell", cell, x),
        ]
    return [
        *cases,
        LayerCase("GRU, last state only", lambda: Call(nn.GRU(3, 4, batch_first=True), last), x),
        LayerCase("RNN, relu", lambda: Call(nn.RNN(3, 4, nonlinearity="relu", batch_first=True), _all_outputs), x),
        LayerCase("LSTM, projection", lambda: Call(nn.LSTM(3, 4, proj_size=2, batch_first=True), _all_outputs), x),
        LayerCase(
            "LSTM, given states", lambda: Call(nn.LSTM(3, 4, batch_first=True), given), _both(x, states)
        ),
        LayerCase(
            "LSTM, partly frozen",
            lambda: Call(_frozen(nn.LSTM(3, 4, batch_first=True), "weight_ih_l0", "bias_hh_l0"), _all_outputs),
            x,
        ),
    ]  # fmt: skip


def _other_cases() -> list[LayerCase]:
    def twice(layer: nn.Module, x: Tensor) -> Tensor:
        found: Tensor = layer(torch.tanh(layer(x)))
        return found

    def bilinear(layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        found: Tensor = layer(x, y)
        return found

    return [
        LayerCase("tied weights", Tied, _ids(7, 5)),
        LayerCase("a layer called twice", lambda: Call(nn.Linear(6, 6), twice), _reals(3, 6)),
        LayerCase("LoRA", Adapted, _reals(4, 6)),
        LayerCase("bias alone", lambda: nn.Sequential(Bias(), nn.Linear(5, 3)), _reals(5)),
        LayerCase("raw parameters", lambda: nn.Sequential(Scale(), nn.Linear(5, 3)), _reals(4, 5)),
        LayerCase("raw parameters, branching", Branching, _reals(5)),
        LayerCase("Bilinear", lambda: Call(nn.Bilinear(3, 4, 2), bilinear), _both(_reals(3), _reals(4))),
        LayerCase("ConvTranspose2d", lambda: nn.ConvTranspose2d(2, 3, 3, stride=2), _reals(2, 4, 4)),
    ]
