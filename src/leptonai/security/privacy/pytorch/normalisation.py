"""Rules of the normalisation layers that keep examples apart, and of PReLU.

Their parameters are few, so the examples' gradients are formed at once and held, (B, features): nothing of the
activations stays behind. Legend: B examples, C channels, F normalised features, S all positions of an example.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from leptonai.core.errors import InputError
from leptonai.security.privacy.pytorch.tape import Rule, Tape
from leptonai.security.privacy.pytorch.tapping import (
    PerExampleRecord,
    TapedRule,
    detached,
    require_examples_first,
    tap,
    trainable,
)


def _add_affine(
    tape: Tape,
    module: Any,
    grad: Tensor,
    normalised: Callable[[], Tensor],
    reduce: Callable[[Tensor], Tensor],
) -> None:
    """Record weight and bias of ``normalised() * weight + bias``; ``reduce`` sums over an example's positions."""
    weight: Any = module.weight
    bias: Any = getattr(module, "bias", None)
    gradients = []
    if trainable(weight):
        gradients.append(reduce(normalised().mul_(grad)).view(-1, *weight.shape))
    if trainable(bias):
        gradients.append(reduce(grad).view(-1, *bias.shape))
    key = (type(module).__name__, tuple(grad.shape))
    tape.add(PerExampleRecord(trainable(weight, bias), key, tuple(gradients)))


class _NormalisingRule(TapedRule):
    """A layer that normalises each example by itself, then scales and shifts; types say how."""

    def _taped(self, layer: Any, tape: Tape, *inputs: Any, **options: Any) -> Any:
        (x,) = (*inputs, *options.values())
        self._check(layer, tape, x)
        y = self._normalise(layer, x, detached(layer.weight), detached(getattr(layer, "bias", None)))

        def listen(grad: Tensor, x: Tensor) -> None:
            _add_affine(tape, layer, grad, lambda: self._normalise(layer, x, None, None), self._reduce(layer))

        return tap(tape, y, listen, x)

    def _check(self, layer: Any, tape: Tape, x: Tensor) -> None:
        require_examples_first(layer, tape, x)

    @abc.abstractmethod
    def _normalise(self, layer: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """The layer's output with this weight and bias."""

    def _reduce(self, layer: Any) -> Callable[[Tensor], Tensor]:
        """What sums gradients over an example's positions."""
        return _sum_positions


class LayerNormRule(_NormalisingRule):
    """LayerNorm over the last dimensions, on (B, ..., F)."""

    def _check(self, layer: Any, tape: Tape, x: Tensor) -> None:
        _require_outside(layer, tape, x)

    def _normalise(self, layer: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)

    def _reduce(self, layer: Any) -> Callable[[Tensor], Tensor]:
        return _sum_middle(len(layer.normalized_shape))


class RMSNormRule(LayerNormRule):
    """RMSNorm over the last dimensions, on (B, ..., F)."""

    def _normalise(self, layer: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.rms_norm(x, list(layer.normalized_shape), weight, layer.eps)


class GroupNormRule(_NormalisingRule):
    """GroupNorm on (B, C, ...)."""

    def _normalise(self, layer: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.group_norm(x, layer.num_groups, weight, bias, layer.eps)


class InstanceNormRule(_NormalisingRule):
    """InstanceNorm1d/2d/3d on (B, C, ...), with each example's own statistics."""

    _DIMS: ClassVar[dict[type[nn.Module], int]] = {
        nn.InstanceNorm1d: 3,
        nn.InstanceNorm2d: 4,
        nn.InstanceNorm3d: 5,
    }

    def refusal(self, module: nn.Module) -> str | None:
        """Running statistics mix the examples, and no noise protects them."""
        layer: Any = module
        if layer.track_running_stats:
            return (
                f"{type(module).__name__} with track_running_stats=True keeps statistics of the data without "
                "noise; use track_running_stats=False, or GroupNorm"
            )
        return None

    def _check(self, layer: Any, tape: Tape, x: Tensor) -> None:
        if x.dim() != self._DIMS[type(layer)]:
            raise InputError(
                f"{type(layer).__name__}: expected (examples, channels, ...) in {self._DIMS[type(layer)]} "
                f"dimensions, found shape {tuple(x.shape)}"
            )
        require_examples_first(layer, tape, x)

    def _normalise(self, layer: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.instance_norm(x, weight=weight, bias=bias, use_input_stats=True, eps=layer.eps)


class PReLURule(TapedRule):
    """PReLU on (B, ...) with one slope, or on (B, C, ...) with a slope a channel."""

    def _taped(self, layer: Any, tape: Tape, *inputs: Any, **options: Any) -> Any:
        (x,) = (*inputs, *options.values())
        require_examples_first(layer, tape, x)
        weight = layer.weight

        def listen(grad: Tensor, x: Tensor) -> None:
            below = x.clamp(max=0).mul_(grad)
            each = below.flatten(1).sum(1, keepdim=True) if weight.numel() == 1 else _sum_positions(below)
            tape.add(PerExampleRecord((weight,), ("PReLU", tuple(x.shape)), (each,)))

        return tap(tape, F.prelu(x, weight.detach()), listen, x)


def _require_outside(layer: Any, tape: Tape, x: Tensor) -> None:
    """The examples lie in dimension 0, and dimension 0 is not normalised over."""
    require_examples_first(layer, tape, x)
    if x.dim() <= len(layer.normalized_shape):
        raise InputError(
            f"{type(layer).__name__}: expected (examples, ...) before the normalised dimensions "
            f"{tuple(layer.normalized_shape)}, found shape {tuple(x.shape)}"
        )


def _sum_middle(normalised_dims: int) -> Callable[[Tensor], Tensor]:
    """Sum over what lies between the examples and the last dimensions: (B, ..., F) to (B, F)."""

    def reduce(grads: Tensor) -> Tensor:
        middle = grads.dim() - 1 - normalised_dims
        return grads.sum(dim=tuple(range(1, 1 + middle))) if middle else grads

    return reduce


def _sum_positions(grads: Tensor) -> Tensor:
    """Sum over all but examples and channels: (B, C, ...) to (B, C)."""
    return grads if grads.dim() == 2 else grads.flatten(2).sum(2)


RULES: dict[type[nn.Module], Rule] = {
    nn.LayerNorm: LayerNormRule(),
    nn.RMSNorm: RMSNormRule(),
    nn.GroupNorm: GroupNormRule(),
    nn.InstanceNorm1d: InstanceNormRule(),
    nn.InstanceNorm2d: InstanceNormRule(),
    nn.InstanceNorm3d: InstanceNormRule(),
    nn.PReLU: PReLURule(),
}
"""Layer type to rule."""
