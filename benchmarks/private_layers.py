"""Every layer type that can be trained privately, against a float64 loop over single examples.

``python -m benchmarks.private_layers`` prints the relative error of the sum of clipped gradients for each.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks.private_layer_cases import LayerCase, layer_cases
from leptonai.security.privacy.pytorch.clipper import Clipper


def example_losses(outputs: Tensor, weights: Tensor) -> Tensor:
    """(B,): a loss for each example, with a gradient that is neither constant nor equal among them."""
    flat = outputs.flatten(1)
    return (flat * weights[:, : flat.shape[1]]).sum(1) + 0.3 * flat.square().sum(1)


def single_gradients(model: nn.Module, inputs: Sequence[Tensor], weights: Tensor) -> list[tuple[Tensor, ...]]:
    """Float64 gradients of each example's loss, by ordinary autograd, one example at a time.

    Args:
        model: copied; left as it is.
        inputs: with the examples first.
        weights: (B, many), of :func:`example_losses`.

    Returns:
        For each example a tensor for each trainable parameter.
    """
    double = copy.deepcopy(model).double()
    parameters = [each for each in double.parameters() if each.requires_grad]
    found = []
    for i in range(len(weights)):
        mine = [each[i : i + 1].double() if each.is_floating_point() else each[i : i + 1] for each in inputs]
        loss = example_losses(double(*mine), weights[i : i + 1].double()).sum()
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        pairs = zip(grads, parameters, strict=True)
        found.append(tuple(torch.zeros_like(p) if g is None else g for g, p in pairs))
    return found


def clipped_sum(gradients: Sequence[tuple[Tensor, ...]], clip: float) -> Tensor:
    """(P,) float64: the sum of the examples' gradients, each cut to ``clip`` as a whole."""
    flats = [torch.cat([each.flatten() for each in grads]) for grads in gradients]
    return torch.stack([flat * min(1.0, clip / float(flat.norm())) for flat in flats]).sum(0)


def draw_case(
    case: LayerCase, *, num_examples: int, seed: int
) -> tuple[nn.Module, tuple[Tensor, ...], Tensor]:
    """A case's model, its inputs, and the weights of :func:`example_losses`; equal for equal seeds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = case.build()
    generator = torch.Generator().manual_seed(seed + 1)
    inputs = case.draw(num_examples, generator)
    return model, inputs, torch.randn(num_examples, 1000, generator=generator)


def relative_error(case: LayerCase, *, num_examples: int = 6, seed: int = 0) -> float:
    """Of the sum of clipped gradients, clipped at the examples' middle norm: norm of the error over the norm."""
    model, inputs, weights = draw_case(case, num_examples=num_examples, seed=seed)
    gradients = single_gradients(model, inputs, weights)
    norms = sorted(sum(float(each.square().sum()) for each in grads) ** 0.5 for grads in gradients)
    clip = norms[len(norms) // 2]
    expected = clipped_sum(gradients, clip)
    clipper = Clipper(model, clip=clip)
    clipper.add(lambda: example_losses(model(*inputs), weights).mean(), num_examples)
    return float((clipper.sum_P.double() - expected).norm() / expected.norm())


def relative_errors() -> dict[str, float]:
    """Of every case."""
    return {case.name: relative_error(case) for case in layer_cases()}


def main() -> None:
    """Print the table."""
    errors = relative_errors()
    for name, error in errors.items():
        print(f"{name:45} {error:.1e}")
    print(f"{'largest':45} {max(errors.values()):.1e}")


if __name__ == "__main__":
    main()
