"""Low-rank adapters: a frozen layer plus a small trainable product, for private fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from leptonai.core.errors import InputError


class LoraLinear(nn.Module):
    """A frozen Linear ``W x + b`` plus ``(alpha / rank) * B A x``; only A and B are trained.

    Both are ordinary Linear layers, so that per-example clipping needs no rule of its own. B starts at zero:
    the model begins as it was.

    Args:
        base: the layer to adapt; its parameters are frozen.
        rank: rows of A, >= 1 and below both of the layer's sizes.
        alpha: scale of the adapter, > 0; None: ``rank``, hence a scale of 1.

    Raises:
        InputError: a value lies outside its range.

    Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models".

    >>> layer = LoraLinear(nn.Linear(8, 4), rank=2)
    >>> sum(each.numel() for each in layer.parameters() if each.requires_grad)
    24
    """

    def __init__(self, base: nn.Linear, *, rank: int, alpha: float | None = None) -> None:
        super().__init__()
        smaller = min(base.in_features, base.out_features)
        if not 1 <= rank <= smaller:
            raise InputError(f"LoraLinear: expected rank in 1..{smaller}, found {rank}")
        if alpha is not None and not (math.isfinite(alpha) and alpha > 0):
            raise InputError(f"LoraLinear: expected alpha > 0, found {alpha}")
        self.base = base.requires_grad_(False)
        where = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.down = nn.Linear(base.in_features, rank, bias=False, **where)
        self.up = nn.Linear(rank, base.out_features, bias=False, **where)
        nn.init.zeros_(self.up.weight)
        self.scale = 1.0 if alpha is None else alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        """``base(x) + scale * up(down(x))``."""
        adapted: Tensor = self.base(x) + self.scale * self.up(self.down(x))
        return adapted

    def merged(self) -> nn.Linear:
        """One Linear that computes the same, for use without the adapter's cost."""
        layer = nn.Linear(self.base.in_features, self.base.out_features, bias=self.base.bias is not None)
        layer = layer.to(self.base.weight)
        layer.weight.data.copy_(self.base.weight + self.scale * self.up.weight @ self.down.weight)
        if self.base.bias is not None:
            layer.bias.data.copy_(self.base.bias)
        return layer


def add_lora(
    model: nn.Module,
    rank: int,
    targets: Iterable[str],
    *,
    alpha: float | None = None,
    train: Iterable[str] = (),
) -> nn.Module:
    """Freeze a model and give some of its Linear layers an adapter, in place.

    Args:
        model: the model; returned too.
        rank, alpha: see :class:`LoraLinear`.
        targets: names of Linear layers: a full path such as ``encoder.0.linear1``, or its last part.
        train: names, as in ``targets``, of modules that stay trainable as a whole, such as a new head.

    Raises:
        InputError: a target names no Linear layer, or one whose weight its owner reads itself.

    >>> model = add_lora(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), 2, ["0"], train=["2"])
    >>> [name for name, each in model.named_parameters() if each.requires_grad]
    ['0.down.weight', '0.up.weight', '2.weight', '2.bias']
    """
    kept, modules = set(train), dict(model.named_modules())
    found = _linears(modules, set(targets))
    model.requires_grad_(False)
    for path, base in found.items():
        owner, _, name = path.rpartition(".")
        setattr(modules[owner], name, LoraLinear(base, rank=rank, alpha=alpha))
    for path, module in modules.items():
        if path and _names(path) & kept:
            module.requires_grad_(True)
    return model


def _linears(modules: Mapping[str, nn.Module], wanted: set[str]) -> dict[str, nn.Linear]:
    """The Linear layers of these names, by path."""
    linears = {path: each for path, each in modules.items() if path and type(each) is nn.Linear}
    found = {path: each for path, each in linears.items() if _names(path) & wanted}
    missing = wanted - {name for path in found for name in _names(path)}
    if missing:
        raise InputError(
            f"add_lora: no Linear layer is named {', '.join(sorted(missing))}",
            hint=f"Linear layers: {', '.join(linears)}; an attention layer's own projections cannot be adapted",
        )
    return found


def _names(path: str) -> set[str]:
    """The names that mean a module: its path, and the path's last part."""
    return {path, path.rpartition(".")[2]}
