"""What one operation of a TensorFlow graph costs: its kind, FLOPs, bytes and sizes, from its static shapes."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

from leptonai.compute.workload import OperationKind
from leptonai.core.errors import InputError


class Cost(NamedTuple):
    """What one call costs; the fields of :class:`leptonai.training.traced.Call`."""

    kind: OperationKind
    flops: float
    bytes_moved: float
    dims: tuple[float, ...] = ()


VIEWS = frozenset(
    {"Identity", "Reshape", "Squeeze", "ExpandDims", "StopGradient", "PreventGradient", "IdentityN"}
)
"""Operations whose output is their first input, seen in another way."""

_FREE = VIEWS | frozenset({
    "Const", "Placeholder", "PlaceholderWithDefault", "Shape", "ShapeN", "Size", "Rank", "NoOp", "ReadVariableOp",
    "VariableShape", "VarHandleOp", "Assert", "BroadcastGradientArgs", "TensorListReserve", "EmptyTensorList",
    "TensorListLength", "TensorListElementShape", "TensorListPopBack", "TensorListPushBack", "TensorListGetItem",
    "TensorListSetItem", "Range", "InvertPermutation", "ConcatOffset", "Empty",
})  # fmt: skip
_COPY = re.compile(
    r"Concat\w*|Pack|Unpack|Split\w*|Slice|StridedSlice\w*|Transpose|Tile|\w*Pad(V2|Grad)?|Cast|Fill|\w+Like|ReverseV2"
    r"|TensorList\w+|OneHot|BroadcastTo|AssignVariableOp|Roll|SpaceToBatch\w*|BatchToSpace\w*|MatrixBandPart"
)
_FILL = re.compile(r"Fill|\w+Like|OneHot")
_GATHER = re.compile(
    r"\w*Gather\w*|\w*Scatter\w*|UnsortedSegment\w*|SparseSegment\w*|DynamicStitch|DynamicPartition"
)
_REDUCTION = re.compile(
    r"Sum|Mean|Max|Min|Prod|All|Any|Arg(Max|Min)|Cum\w+|TopK\w*|L2Loss|BiasAddGrad|\w*Softmax\w*|\w*Pool\w*"
    r"|FusedBatchNorm\w*|LRN\w*|EuclideanNorm|BincountV?\d?|InTopK\w*|LogSumExp"
)
_CONVOLUTION = re.compile(r"(Conv2D|Conv3D|DepthwiseConv2dNative)(Backprop(Input|Filter)(V2)?)?")


def cost(op: Any) -> Cost | None:
    """What this operation costs; None: nothing.

    A multiply-add is two FLOPs; element-wise work counts one per element written, reductions and
    normalisations one per element read. Bytes are those of every input and output once, save that a gather
    reads only what it gives.

    Raises:
        InputError: a tensor's shape is not known before the run.
    """
    if op.type in _FREE:
        return None
    if op.type == "MatMul":
        first = _shape(op.inputs[0])
        inner, rows = first if op.get_attr("transpose_a") else first[::-1]
        return _product(op, (1, rows, inner, _shape(op.outputs[0])[-1]))
    if op.type.startswith("BatchMatMul"):
        inner = _shape(op.inputs[0])[-2 if op.get_attr("adj_x") else -1]
        *batch, rows, columns = _shape(op.outputs[0])
        return _product(op, (math.prod(batch), rows, inner, columns))
    if op.type == "Einsum":
        return _einsum(op)
    if _CONVOLUTION.fullmatch(op.type):
        return _convolution(op)
    if op.type == "Sum" and op.inputs[1].op.type == "BroadcastGradientArgs":
        return _unbroadcast(op)
    return _by_bytes(op)


def tensor_bytes(tensor: Any) -> int:
    """Bytes of a tensor; handles and lists, which have no size of their own, count none."""
    return 0 if tensor.dtype.name in ("resource", "variant", "string") else _size(tensor) * tensor.dtype.size


def _unbroadcast(op: Any) -> Cost | None:
    """The gradient of a broadcast: a sum over the dims it added, nothing where it added none; a reshape follows."""
    given = op.inputs[0]
    shapes = [user.outputs[0] for user in op.outputs[0].consumers() if user.type == "Reshape"]
    if not shapes or _size(shapes[0]) == _size(given):
        return None
    return Cost("reduction", float(_size(given)), float(tensor_bytes(given) + tensor_bytes(shapes[0])))


def _by_bytes(op: Any) -> Cost:
    inputs = [_size(tensor) for tensor in op.inputs]
    outputs = [_size(tensor) for tensor in op.outputs]
    moved = float(_bytes(op))
    if _GATHER.fullmatch(op.type):
        if "Gather" in op.type:
            moved = 2.0 * sum(map(tensor_bytes, op.outputs)) + tensor_bytes(op.inputs[1])
        return Cost("gather", 0.0, moved)
    if _FILL.fullmatch(op.type):
        return Cost("copy", 0.0, float(sum(map(tensor_bytes, op.outputs))))
    if _COPY.fullmatch(op.type):
        return Cost("copy", 0.0, moved)
    if _REDUCTION.fullmatch(op.type):
        return Cost("reduction", float(max(inputs, default=0)), moved)
    return Cost("elementwise", float(max(outputs, default=0)), moved)


def _product(op: Any, dims: tuple[int, ...]) -> Cost:
    return Cost("matmul", 2.0 * math.prod(dims), float(_bytes(op)), tuple(map(float, dims)))


def _einsum(op: Any) -> Cost:
    """A sum of products as one batch of matrix products: letters in both factors and the result make the batch."""
    equation = op.get_attr("equation").decode()
    left, result = equation.replace(" ", "").split("->")
    terms = left.split(",")
    if len(terms) != 2:
        return Cost("reduction", float(sum(_size(tensor) for tensor in op.inputs)), float(_bytes(op)))
    sizes: dict[str, int] = {}
    letters: list[set[str]] = []
    for term, tensor in zip((*terms, result), (*op.inputs, op.outputs[0]), strict=True):
        names = _letters(term, len(_shape(tensor)))
        sizes.update(zip(names, _shape(tensor), strict=True))
        letters.append(set(names))
    a, b, out = letters
    groups = (a & b & out, (a & out) - b, (a & b) - out, (b & out) - a)
    return _product(op, tuple(math.prod(sizes[name] for name in group) for group in groups))


def _letters(term: str, rank: int) -> list[str]:
    """The names of a tensor's dims, those behind an ellipsis counted from its end."""
    if "..." not in term:
        return list(term)
    before, after = term.split("...")
    hidden = rank - len(before) - len(after)
    return [*before, *(f"...{hidden - place}" for place in range(hidden)), *after]


def _convolution(op: Any) -> Cost:
    """A convolution or one of its two gradients, all of which cost the same."""
    if "BackpropInput" in op.type:
        images, kernel, given = op.outputs[0], op.inputs[1], op.inputs[2]
    elif "BackpropFilter" in op.type:
        images, kernel, given = op.inputs[0], op.outputs[0], op.inputs[2]
    else:
        images, kernel, given = op.inputs[0], op.inputs[1], op.outputs[0]
    last = not op.get_attr("data_format").decode().startswith("NC")
    shape, weights, out = _shape(images), _shape(kernel), _shape(given)
    channels, out_channels = (shape[-1], out[-1]) if last else (shape[1], out[1])
    positions = math.prod(out[1:-1] if last else out[2:])
    # A depthwise kernel is (rows, columns, channels, outputs of each); any other one (..., channels / groups, outputs).
    groups = channels if op.type.startswith("Depthwise") else channels // weights[-2]
    dims = tuple(map(float, (shape[0], channels, out_channels, math.prod(weights[:-2]), positions, groups)))
    return Cost("convolution", 2.0 * math.prod(dims[:5]) / groups, float(_bytes(op)), dims)


def _bytes(op: Any) -> int:
    tensors = {tensor.name: tensor for tensor in (*op.inputs, *op.outputs)}
    return sum(map(tensor_bytes, tensors.values()))


def _size(tensor: Any) -> int:
    return 0 if tensor.dtype.name in ("resource", "variant", "string") else math.prod(_shape(tensor))


def _shape(tensor: Any) -> tuple[int, ...]:
    shape = tensor.shape
    if not shape.is_fully_defined():
        raise InputError(
            f"the shape of {tensor.name} is not known before the run: {shape}",
            hint="the work of a model with shapes that depend on values cannot be told",
        )
    return tuple(shape.as_list())
