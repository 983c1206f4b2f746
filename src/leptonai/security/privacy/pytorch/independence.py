"""Probes that run a model or a loss on a few examples and tell whether one example's result depends on another's.

They find what no list of types can: batch statistics in custom code, routing, ranking, contrastive terms, sums in
place of means. A probe sees only the path the examples take; it is a check beside the rules, not a proof.
Legend: B examples.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from leptonai.core.errors import InputError, Refused

_TOLERANCE = 1e-4
"""Of the largest value. Float32 kernels round differently for other batch sizes, by 1e-6 or so."""

_OWN_BATCH_DIM = (nn.MultiheadAttention, nn.RNNBase)
"""Modules that may be told to hold the examples in dimension 1."""


_Call = tuple[str, str, list[Tensor], int]
"""A call of a module: its path, type, outputs, and the dimension of the examples in them."""


def check_independence(model: Callable[..., Any], example_batch: Any) -> None:
    """Check that each example's outputs stay the same when other examples leave the batch or change places.

    A module is run in training mode with dropout off, or if it is random all the same in evaluation mode; its
    buffers and modes are put back.

    Args:
        model: a module, or a function of the batch.
        example_batch: what it takes, B >= 3 examples: a tensor, or a tuple of positional or a dict of named ones.

    Raises:
        Refused: some output depends on other examples; the message names the first module that causes it, or the
            first that does not get the examples in dimension 0.
        InputError: there are fewer than three examples.
    """
    inputs, options = _as_call(example_batch)
    tensors = [
        leaf for leaf in pytree.tree_leaves((inputs, options)) if isinstance(leaf, Tensor) and leaf.dim()
    ]
    num_examples = tensors[0].shape[0] if tensors else 0
    if num_examples < 3:
        raise InputError("check_independence: needs a batch of at least 3 examples")
    whole = torch.arange(num_examples)
    # Without the last, in reverse, and alone: a dependence may need a size, a place, or company.
    choices = [whole[:-1], whole.flip(0), whole[:1]]
    for training in (True, False):
        with _quiet(model, training=training), torch.no_grad():
            reference = _outputs(model, inputs, options, whole)
            if _differ(reference, _outputs(model, inputs, options, whole)):
                continue
            for chosen in choices:
                _compare(reference, _outputs(model, inputs, options, chosen), chosen, num_examples)
            return
    raise Refused(
        "the model gives random results even in evaluation mode, so that nothing can be said of its examples",
        hint="let nn.Dropout, which evaluation switches off, be the only random layer",
    )


def check_loss(loss: Callable[[Any, Any], Tensor], outputs: Tensor, labels: Tensor) -> None:
    """Check that a loss is the mean of the losses of single examples.

    Args:
        loss: of outputs and labels, a scalar.
        outputs, labels: of B >= 2 examples.

    Raises:
        Refused: it is a sum, weighs the examples by each other, or compares them.
        InputError: there are fewer than two examples, or the loss is no scalar.
    """
    if len(outputs) < 2:
        raise InputError("check_loss: needs at least 2 examples")
    with torch.no_grad():
        together = loss(outputs, labels)
        singles = [loss(outputs[i : i + 1], labels[i : i + 1]) for i in range(len(outputs))]
    if together.dim():
        raise InputError(f"check_loss: expected a scalar, found shape {tuple(together.shape)}")
    mean, total = torch.stack(singles).double().mean(), torch.stack(singles).double().sum()
    if _close(together, mean):
        return
    if _close(together, total):
        raise Refused("the loss sums over the examples", hint='take the mean: reduction="mean"')
    raise Refused(
        f"the loss of a batch, {float(together):.6g}, is not the mean of its examples' losses, {float(mean):.6g}: "
        "one example's loss depends on the others",
        hint="give each example its own mean first, for instance over its positions that are no padding, and then "
        "take the mean over the examples; losses that compare examples cannot be used",
    )


def _compare(reference: list[_Call], found: list[_Call], chosen: Tensor, num_examples: int) -> None:
    """Compare call by call what the same examples gave in two batches.

    Raises:
        Refused: at the first difference.
    """
    if [path for path, *_ in reference] != [path for path, *_ in found]:
        raise Refused(
            "the model runs other modules for other batches: its control flow depends on the examples"
        )
    for (path, kind, before, dim), (_, _, after, _) in zip(reference, found, strict=True):
        for old, new in zip(before, after, strict=False):
            if old.dim() <= dim or old.shape[dim] != num_examples or new.shape[dim] != len(chosen):
                raise Refused(
                    f"{path} ({kind}): its output has shape {tuple(new.shape)} for {len(chosen)} examples and "
                    f"{tuple(old.shape)} for {num_examples}: the examples are not in dimension {dim}",
                    hint="give every layer inputs (examples, ...); expand what all examples share",
                )
            if not _close(old.index_select(dim, chosen), new):
                raise Refused(
                    f"{path} ({kind}): an example's output changes with the other examples of the batch",
                    hint="use operations that treat each example by itself, such as GroupNorm in place of batch "
                    "statistics",
                )


def _differ(reference: list[_Call], again: list[_Call]) -> bool:
    """Whether the same batch gave other results the second time."""
    pairs = zip(reference, again, strict=True)
    return any(
        not _close(one, other) for old, new in pairs for one, other in zip(old[2], new[2], strict=True)
    )


def _outputs(model: Callable[..., Any], inputs: Any, options: Any, chosen: Tensor) -> list[_Call]:
    """Every call of a module, in order of completion."""
    calls: list[_Call] = []
    hooks, states = [], list[Tensor]()
    modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}

    def listen(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, _inputs: Any, found: Any) -> None:
            second = isinstance(module, _OWN_BATCH_DIM) and not module.batch_first
            tensors = [each for each in pytree.tree_leaves(found) if isinstance(each, Tensor)]
            if isinstance(module, _OWN_BATCH_DIM):
                # The states of recurrent layers hold the examples elsewhere, also where a container returns them.
                states.extend(tensors[1:])
            kept = [each.detach().clone() for each in tensors if not any(each is state for state in states)]
            calls.append((path or "the model", type(module).__name__, kept, 1 if second else 0))

        return hook

    try:
        hooks = [module.register_forward_hook(listen(path)) for path, module in modules.items()]
        leaves, structure = pytree.tree_flatten((inputs, options))
        picked = [leaf[chosen] if isinstance(leaf, Tensor) and leaf.dim() else leaf for leaf in leaves]
        args, named = pytree.tree_unflatten(picked, structure)
        found = model(*args, **named)
    finally:
        for each in hooks:
            each.remove()
    if not modules:
        outputs = [each for each in pytree.tree_leaves(found) if isinstance(each, Tensor)]
        calls.append(("the function", getattr(model, "__name__", "function"), outputs, 0))
    return calls


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    if not one.is_floating_point():
        return bool((one == other).all())
    one, other = one.double(), other.double()
    scale = float(one[one.isfinite()].abs().max()) if bool(one.isfinite().any()) else 1.0
    return torch.allclose(one, other, rtol=0, atol=_TOLERANCE * max(scale, 1e-12), equal_nan=True)


def _as_call(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(batch, dict):
        return (), batch
    return (tuple(batch), {}) if isinstance(batch, tuple | list) else ((batch,), {})


@contextlib.contextmanager
def _quiet(model: Any, *, training: bool) -> Iterator[None]:
    """One mode, without dropout; buffers, modes and the random state are put back afterwards."""
    if not isinstance(model, nn.Module):
        with torch.random.fork_rng(devices=[]):
            yield
        return
    modes = {module: module.training for module in model.modules()}
    buffers = {name: each.detach().clone() for name, each in model.named_buffers()}
    rates: list[tuple[Any, str, float]] = []
    for module in model.modules():
        name = "p" if isinstance(module, nn.modules.dropout._DropoutNd) else "dropout"
        if type(getattr(module, name, None)) in (int, float):
            rates.append((module, name, getattr(module, name)))
    try:
        with torch.random.fork_rng(devices=[]):
            model.train(training)
            for module, name, _ in rates:
                setattr(module, name, 0.0)
            yield
    finally:
        for module, name, rate in rates:
            setattr(module, name, rate)
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for name, each in model.named_buffers():
                each.copy_(buffers[name])
