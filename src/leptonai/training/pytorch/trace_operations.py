"""What one call of a PyTorch kernel costs: its kind, FLOPs, bytes and sizes, from the shapes of its tensors."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from leptonai.compute.workload import OperationKind


class Cost(NamedTuple):
    """What one call costs; the fields of :class:`leptonai.training.traced.Call`."""

    kind: OperationKind
    flops: float
    bytes_moved: float
    dims: tuple[float, ...] = ()


# Operators that give another look at the same memory although their schema does not say so, or none at all.
_FREE = re.compile(
    r"(new_)?empty(_like|_strided|_permuted)?|_unsafe_view|_reshape_alias|lift_fresh|set_|resize_"
)
# Position of the first factor among the arguments.
_PRODUCTS = {
    "mm": 0, "bmm": 0, "mv": 0, "dot": 0, "vdot": 0, "addmm": 1, "_addmm_activation": 1, "baddbmm": 1, "addmv": 1,
}  # fmt: skip
_CONVOLUTIONS = frozenset({"convolution", "_convolution", "convolution_overrideable"})
_ATTENTION = re.compile(r"_scaled_dot_product_\w*attention\w*")
_GATHERS = re.compile(
    r"embedding\w*|_embedding_bag\w*|index|_?index_put_?|_unsafe_index\w*|index_(add|copy|fill|select|reduce)_?|gather"
    r"|take|scatter\w*|masked_(select|scatter\w*)|nonzero"
)
_COPIES = re.compile(
    r"clone|contiguous|copy_?|_to_copy|cat|stack|repeat|flip|roll|\w*pad\w*|(select|slice|split|diagonal|unfold)_\w+"
    r"|zeros\w*|ones\w*|full\w*|fill_?|zero_?|new_(zeros|ones|full)|arange|scalar_tensor|tril|triu|eye"
)
_FILLS = re.compile(
    r"zeros\w*|ones\w*|full\w*|fill_?|zero_?|new_(zeros|ones|full)|arange|scalar_tensor|eye|copy_"
)
_ELEMENTWISE = re.compile(
    r"native_dropout\w*|bernoulli\w*|\w*dropout\w*|(uniform|normal|exponential)_|rand\w*|where|_fused_dropout"
    r"|_thnn_fused\w*|hardtanh\w*|leaky_relu\w*|gelu\w*|silu\w*|threshold_backward"
)
_REDUCTIONS = re.compile(
    r"\w*(norm|softmax|pool|loss|sum|mean|var|std|sort|topk|max|min|cumprod|logsumexp|linalg)\w*"
)


@functools.cache
def kind_of(func: Any) -> OperationKind | None:
    """The sort of kernel that an operator is; None: it moves nothing (views, allocation, questions about a tensor)."""
    namespace, _, name = func._schema.name.partition("::")
    if namespace == "prim" or func.is_view or _FREE.fullmatch(name):
        return None
    kinds: tuple[tuple[bool, OperationKind], ...] = (
        (name in _PRODUCTS, "matmul"),
        (name in _CONVOLUTIONS or name == "convolution_backward", "convolution"),
        (bool(_ATTENTION.fullmatch(name)), "attention"),
        (name.startswith("mkldnn_rnn_layer"), "recurrence"),
        (bool(_GATHERS.fullmatch(name)), "gather"),
        (bool(_COPIES.fullmatch(name)), "copy"),
        (torch.Tag.pointwise in func.tags or bool(_ELEMENTWISE.fullmatch(name)), "elementwise"),
        (torch.Tag.reduction in func.tags or bool(_REDUCTIONS.fullmatch(name)), "reduction"),
    )
    return next((kind for holds, kind in kinds if holds), "other")


def name_of(func: Any) -> str:
    """An operator's name without its namespace, such as ``addmm``."""
    return str(func._schema.name).partition("::")[2]


def cost(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> Cost | None:
    """What this call costs; None: nothing.

    A multiply-add is two FLOPs; element-wise work counts one per element written, reductions and
    normalisations one per element read. Bytes are those of every input and output once, save that a gather
    reads only what it gives. Causal attention counts as if nothing were masked. The backward pass of a fused
    attention computes the scores again: five products for the forward pass's two.
    """
    kind = kind_of(func)
    if kind is None:
        return None
    name = name_of(func)
    inputs, outputs = _tensors((*args, *kwargs.values())), _tensors((out,))
    moved = _moved(name, kind, inputs, outputs)
    match kind:
        case "matmul":
            start = _PRODUCTS[name]
            dims = _product_dims(args[start].shape, args[start + 1].shape)
            return Cost(kind, 2.0 * math.prod(dims), moved, dims)
        case "convolution":
            return _convolution(name, args, out, moved)
        case "attention":
            return _attention(name, args, moved)
        case "recurrence":
            return _recurrence(name, args, moved)
        case "elementwise":
            return Cost(kind, float(max((tensor.numel() for tensor in outputs), default=0)), moved)
        case "reduction":
            return Cost(kind, float(max((tensor.numel() for tensor in inputs), default=0)), moved)
        case _:
            return Cost(kind, 0.0, moved)


def tensor_bytes(tensor: torch.Tensor) -> int:
    """Bytes that a tensor's values take in memory; values that an expansion repeats count once."""
    if tensor.layout is not torch.strided:
        return tensor.numel() * tensor.element_size()
    own = math.prod(
        size for size, step in zip(tensor.shape, tensor.stride(), strict=True) if step or not size
    )
    return own * tensor.element_size()


def _moved(name: str, kind: OperationKind, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> float:
    written = sum(map(tensor_bytes, outputs))
    if kind == "gather" and name.endswith("_"):
        # Only the rows named are touched: each is read and written.
        return 2.0 * sum(map(tensor_bytes, inputs[1:]))
    if kind == "gather" and inputs and name in ("embedding", "index", "index_select", "gather", "take"):
        return 2.0 * written + sum(map(tensor_bytes, inputs[1:]))
    if _FILLS.fullmatch(name):
        return float(written + sum(map(tensor_bytes, inputs[1:])))
    return float(written + sum(map(tensor_bytes, inputs)))


def _tensors(values: Sequence[Any]) -> list[torch.Tensor]:
    """The distinct tensors among the arguments."""
    found: dict[int, torch.Tensor] = {}
    for tensor in _walk(values):
        found[id(tensor)] = tensor
    return list(found.values())


def _walk(values: Sequence[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _walk(value)


def _product_dims(a: torch.Size, b: torch.Size) -> tuple[float, ...]:
    """(batch, m, k, n) of a product of vectors, matrices or batches of matrices."""
    batch = a[0] if len(a) == 3 else 1
    rows = a[-2] if len(a) > 1 else 1
    columns = b[-1] if len(b) > 1 else 1
    return float(batch), float(rows), float(a[-1]), float(columns)


def _convolution(name: str, args: Sequence[Any], out: Any, moved: float) -> Cost:
    """A convolution, or the gradients of one: each of the two that is asked for costs what the forward pass does."""
    if name == "convolution_backward":
        given, images, kernel = args[0].shape, args[1].shape, args[2].shape
        transposed, groups, passes = args[7], args[9], int(args[10][0]) + int(args[10][1])
    else:
        given, images, kernel = out.shape, args[0].shape, args[1].shape
        transposed, groups, passes = args[6], args[8], 1
    # A transposed convolution applies its kernel at each position of its input.
    positions = math.prod((images if transposed else given)[2:])
    dims = tuple(map(float, (images[0], images[1], given[1], math.prod(kernel[2:]), positions, groups)))
    flops = 2.0 * passes * math.prod(dims[:5]) / groups
    return Cost("convolution", flops, moved, dims)


def _attention(name: str, args: Sequence[Any], moved: float) -> Cost:
    """Fused attention; dims are those of the product of queries and keys, (batch and heads, queries, head, keys)."""
    backward = "backward" in name
    query, key, value = (tensor.shape for tensor in (args[1:4] if backward else args[:3]))
    heads, queries, keys = math.prod(query[:-2]), query[-2], key[-2]
    with_keys = 2.0 * heads * queries * keys * query[-1]
    with_values = 2.0 * heads * queries * keys * value[-1]
    flops = 3 * with_keys + 2 * with_values if backward else with_keys + with_values
    return Cost("attention", flops, moved, (float(heads), float(queries), float(query[-1]), float(keys)))


def _recurrence(name: str, args: Sequence[Any], moved: float) -> Cost:
    """A fused recurrent layer; dims are those of its products: (steps, examples, inputs and state, gates)."""
    steps, examples = args[0].shape[:2]
    gates, width = args[1].shape[0], args[1].shape[1] + args[2].shape[1]
    passes = 2 if "backward" in name else 1
    dims = tuple(map(float, (steps, examples, width, gates)))
    return Cost("recurrence", 2.0 * passes * math.prod(dims), moved, dims)
