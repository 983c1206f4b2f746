"""TensorFlow's kernels as a probe times them: made ready here, called by whoever holds the clock.

Training runs them inside one compiled graph, where a call costs less than one made from Python; so each call
here is a graph of several equal kernels on data of their own, one after the other, and its time is divided.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from leptonai.compute.probe_cases import DATA_CHANNELS, KernelCase
from leptonai.core.errors import InputError

Call = Callable[[], object]

DTYPES = {"float32": tf.float32, "bfloat16": tf.bfloat16}
GATHER_TABLE_ROWS = 16_384
REDUCED_LENGTH = 256
# So many operations are worth a call from Python, which costs about 100 us; more copies take long to trace.
FLOPS_A_CALL = 5e7
MOST_COPIES = 8


class KerasKernels:
    """Makes calls of TensorFlow's kernels.

    Args:
        threads: compute threads of this process; must be set before TensorFlow computes anything.
    """

    name = "tensorflow"

    def __init__(self, *, threads: int) -> None:
        from leptonai.training.tensorflow.runtime import configure

        configure(threads=threads)
        # It would leave out kernels whose results nobody asks for: those that are timed.
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
        tf.random.set_seed(0)

    @property
    def versions(self) -> dict[str, str]:
        """What computes."""
        return {"tensorflow": tf.__version__}

    def prepare(self, case: KernelCase) -> tuple[Call, int]:
        """A call that runs a kernel on data of its own, and how many times it does.

        Raises:
            InputError: a precision this probe does not know.
        """
        if case.precision not in DTYPES:
            raise InputError(f"precision {case.precision!r} cannot be probed", hint="float32 or bfloat16")
        if case.kind.startswith("update"):
            return _update(case), 1
        make = {
            "matmul": _matmul,
            "batched_matmul": _batched_matmul,
            "convolution": _convolution,
            "elementwise": _over_memory,
            "reduction": _over_memory,
            "copy": _over_memory,
            "gather": _gather,
        }[case.kind]
        copies = int(min(max(FLOPS_A_CALL / case.flops, 1), MOST_COPIES))
        return _in_a_row([make(case) for _ in range(copies)]), copies

    def empty(self) -> Call:
        """A call that runs no kernel: what every call from Python costs here, and none inside a graph."""
        return _in_a_row([])

    def chain(self, length: int) -> tuple[Call, Call]:
        """A forward pass of this many smallest operations in a row, and one with its backward pass."""
        start, factor = tf.ones([1]), tf.ones([1])

        # Products, since TensorFlow joins a chain of functions of one argument into one kernel.
        def chained(x: tf.Tensor) -> tf.Tensor:
            for _ in range(length):
                x = tf.multiply(x, factor)
            return x

        forward = tf.function(chained, autograph=False)
        both = tf.function(lambda x: tf.gradients(chained(x), [x, factor]), autograph=False)
        return lambda: forward(start).numpy(), lambda: [each.numpy() for each in both(start)]


def _in_a_row(kernels: list[Call]) -> Call:
    """One graph that runs the kernels one after the other, and gives back nothing of them."""

    @tf.function(autograph=False)
    def graph() -> tf.Tensor:
        before: list[Any] = []
        for kernel in kernels:
            with tf.control_dependencies(before):
                before = tf.nest.flatten(kernel())
        with tf.control_dependencies(before):
            return tf.constant(0)

    return graph  # type: ignore[no-any-return]


def _random(*shape: int, precision: str = "float32") -> tf.Tensor:
    return tf.cast(tf.random.uniform(shape), DTYPES[precision])


def _matmul(case: KernelCase) -> Call:
    m, k, n = case.dims
    # Keras keeps a layer's weights as (inputs, outputs), so its products are nn forward, nt and tn backward.
    first, second = case.backward and case.layout == "tn", case.backward and case.layout != "tn"
    left = _random(*((k, m) if first else (m, k)), precision=case.precision)
    right = _random(*((n, k) if second else (k, n)), precision=case.precision)
    return lambda: tf.matmul(left, right, transpose_a=first, transpose_b=second)


def _batched_matmul(case: KernelCase) -> Call:
    batch, m, k, n = case.dims
    left, right = _random(batch, m, k), _random(batch, k, n)
    return lambda: tf.matmul(left, right)


def _convolution(case: KernelCase) -> Call:
    images, channels, outputs, kernel, positions, groups = case.dims
    side, width = math.isqrt(kernel), math.isqrt(positions)
    x = _random(images, width, width, channels, precision=case.precision)
    depthwise = groups == channels > 1
    shape = (
        (side, side, channels, outputs // channels)
        if depthwise
        else (side, side, channels // groups, outputs)
    )
    weights = _random(*shape, precision=case.precision)
    convolve = tf.nn.depthwise_conv2d if depthwise else tf.nn.conv2d

    def forward() -> tf.Tensor:
        return convolve(x, weights, strides=[1, 1, 1, 1], padding="SAME")

    if not case.backward:
        return forward
    grads = _random(images, width, width, outputs, precision=case.precision)
    wanted = [x, weights] if channels > DATA_CHANNELS else [weights]
    # The forward kernel is in this graph too, but nothing asks for its result, so it is not run.
    return lambda: tf.gradients(forward(), wanted, grad_ys=grads)


def _over_memory(case: KernelCase) -> Call:
    x = _random(case.dims[0], precision=case.precision)
    if case.kind == "copy":
        return lambda: tf.raw_ops.DeepCopy(x=x)
    if case.kind == "reduction":
        rows = tf.reshape(x, (-1, min(REDUCED_LENGTH, case.dims[0])))
        return lambda: tf.reduce_sum(rows, axis=-1)
    y = _random(case.dims[0], precision=case.precision)
    return lambda: tf.add(x, y)


def _gather(case: KernelCase) -> Call:
    rows, width = case.dims
    table = _random(GATHER_TABLE_ROWS, width)
    which = tf.random.uniform((rows,), 0, GATHER_TABLE_ROWS, dtype=tf.int32)
    return lambda: tf.gather(table, which)


def _update(case: KernelCase) -> Call:
    import keras

    tensors, elements = case.dims
    variables = [keras.Variable(_random(elements // tensors)) for _ in range(tensors)]
    grads = [_random(elements // tensors) for _ in range(tensors)]
    optimizer = (
        keras.optimizers.Adam(1e-3)
        if case.kind == "update_adam"
        else keras.optimizers.SGD(1e-3, momentum=0.9)
    )
    optimizer.build(variables)

    @tf.function(autograph=False)
    def graph() -> tf.Tensor:
        optimizer.apply(grads, variables)
        return tf.constant(0)

    return lambda: graph().numpy()
