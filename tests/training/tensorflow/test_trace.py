"""Traced Keras models: counts made by hand, and the same networks written in PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leptonai.core.errors import InputError
from leptonai.training.data.dataset import Arrays, Data
from leptonai.training.job import TrainJob
from leptonai.training.traced import DENSE, Trace

keras = pytest.importorskip("keras")

import tensorflow as tf  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

from leptonai.training.pytorch.trace import trace as trace_torch  # noqa: E402
from leptonai.training.tensorflow.profile import profile_keras  # noqa: E402
from leptonai.training.tensorflow.trace import trace, without_weights  # noqa: E402

FLOAT = 4
LAYERS = keras.layers


def mean(model: Any, columns: Any) -> Any:
    return tf.reduce_mean(model(columns[0], training=True))


def traced(model: Any, *shape: int, dtype: Any = np.float32, **options: Any) -> Trace:
    return trace(model, [np.zeros((1, *shape), dtype)], mean, **options)


def torch_traced(model: nn.Module, *shape: int) -> Trace:
    columns = [torch.empty(1, *shape)]
    return trace_torch(
        model, columns, lambda m, batch: (found[0] if isinstance(found := m(*batch), tuple) else found).mean()
    )


def dense_flops(found: Trace, *, backward: bool) -> float:
    return sum(o.calls * o.flops[1] for o in found.operations if o.kind in DENSE and o.backward == backward)


def cnn() -> Any:
    return keras.Sequential(
        [
            keras.Input((14, 14, 3)), LAYERS.Conv2D(6, 3, padding="same"), LAYERS.BatchNormalization(),
            LAYERS.ReLU(), LAYERS.MaxPooling2D(), LAYERS.Conv2D(8, 3, strides=2), LAYERS.Flatten(),
            LAYERS.Dense(10),
        ]
    )  # fmt: skip


def test_a_dense_layer_by_hand() -> None:
    found = traced(keras.Sequential([keras.Input((6,)), LAYERS.Dense(5, name="map")]), 6)
    forward, backward = (
        [o for o in found.operations if o.kind == "matmul" and o.backward == side] for side in (False, True)
    )
    assert [(o.dims, o.flops, o.bytes_moved, o.layer) for o in forward] == [
        (((1, 0), (0, 1), (6, 0), (5, 0)), (0, 60), (FLOAT * 30, FLOAT * 11), "map")
    ]
    # Only the gradient of the weight: nothing needs that of the input, though the graph holds it.
    assert [(o.dims, o.flops) for o in backward] == [(((1, 0), (6, 0), (0, 1), (5, 0)), (0, 60))]
    assert found.activation_bytes == (0, FLOAT * 6)
    assert (found.num_parameters, found.num_tensors, found.parameter_bytes) == (35, 2, 140)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_a_convolution_with_groups_and_stride_by_hand(groups: int) -> None:
    model = keras.Sequential([keras.Input((11, 9, 6)), LAYERS.Conv2D(12, 3, strides=2, groups=groups)])
    (forward,) = [o for o in traced(model, 11, 9, 6).operations if o.kind == "convolution" and not o.backward]
    assert forward.dims == ((0, 1), (6, 0), (12, 0), (9, 0), (20, 0), (groups, 0))
    assert forward.flops == (0, 2 * 20 * 12 * (6 // groups) * 9)


def test_a_depthwise_convolution_and_a_transposed_one() -> None:
    model = keras.Sequential([keras.Input((8, 8, 4)), LAYERS.DepthwiseConv2D(3, depth_multiplier=2)])
    (forward,) = [o for o in traced(model, 8, 8, 4).operations if o.kind == "convolution" and not o.backward]
    assert forward.dims == ((0, 1), (4, 0), (8, 0), (9, 0), (36, 0), (4, 0))
    model = keras.Sequential([keras.Input((5, 5, 4)), LAYERS.Conv2DTranspose(6, 3, strides=2)])
    assert dense_flops(traced(model, 5, 5, 4), backward=False) == 2 * 25 * 4 * 6 * 9


def test_a_perceptron_costs_what_it_costs_in_pytorch() -> None:
    model = keras.Sequential(
        [keras.Input((20,)), LAYERS.Dense(30, activation="relu"), LAYERS.Dense(40), LAYERS.Dense(5)]
    )
    other = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 40), nn.Linear(40, 5))
    assert traced(model, 20).flops() == torch_traced(other, 20).flops()


def test_a_convolutional_network_costs_what_it_costs_in_pytorch() -> None:
    other = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, stride=2), nn.Flatten(), nn.Linear(8 * 9, 10),
    )  # fmt: skip
    found, same = traced(cnn(), 14, 14, 3), torch_traced(other, 3, 14, 14)
    assert found.flops() == same.flops()
    assert found.num_parameters == same.num_parameters
    dims = [
        [o.dims for o in t.operations if o.kind == "convolution" and not o.backward] for t in (found, same)
    ]
    assert dims[0] == dims[1]


def test_an_attention_block_costs_what_it_costs_in_pytorch() -> None:
    inputs = keras.Input((7, 16))
    normal = LAYERS.LayerNormalization()(inputs)
    x = inputs + LAYERS.MultiHeadAttention(2, 8)(normal, normal)
    x = x + LAYERS.Dense(16)(LAYERS.Dense(32, activation="gelu")(LAYERS.LayerNormalization()(x)))
    model = keras.Model(inputs, x)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
            self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
            self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            parts = self.qkv(self.norm(x)).chunk(3, -1)
            q, k, v = (part.view(-1, 7, 2, 8).transpose(1, 2) for part in parts)
            mixed = torch.softmax(q @ k.transpose(2, 3), -1) @ v
            x = x + self.out(mixed.transpose(1, 2).flatten(2))
            found = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
            assert isinstance(found, torch.Tensor)
            return found

    found, same = traced(model, 7, 16), torch_traced(Block(), 7, 16)
    assert found.num_parameters == same.num_parameters
    assert dense_flops(found, backward=False) == dense_flops(same, backward=False)
    assert dense_flops(found, backward=True) == pytest.approx(dense_flops(same, backward=True), rel=0.01)
    attention = [layer.name for layer in found.layers if layer.name.startswith("multi_head_attention")]
    assert len(attention) >= 5  # itself and its maps


def test_a_recurrent_layer_repeats_its_cell() -> None:
    model = keras.Sequential([keras.Input((5, 3)), LAYERS.LSTM(4), LAYERS.Dense(2)])
    found = traced(model, 5, 3)
    assert dense_flops(found, backward=False) == 2 * 5 * (3 + 4) * 16 + 2 * 4 * 2
    steps = [o.calls for o in found.operations if o.kind == "matmul" and not o.backward and "lstm" in o.layer]
    assert set(steps) == {5}
    assert dense_flops(found, backward=True) >= 2 * 2 * 5 * 4 * 16


def test_an_embedding_reads_its_rows_and_writes_its_table() -> None:
    model = keras.Sequential([keras.Input((3,), dtype="int32"), LAYERS.Embedding(1000, 16)])
    forward, backward = (
        [o for o in traced(model, 3, dtype=np.int32).operations if o.kind == "gather" and o.backward == side]
        for side in (False, True)
    )
    rows, indices = FLOAT * 3 * 16, 4 * 3
    assert [o.bytes_moved for o in forward] == [(0, 2 * rows + indices)]
    assert backward[0].bytes_moved[0] >= FLOAT * 1000 * 16


def test_two_batch_sizes_predict_a_third_exactly() -> None:
    found, other = traced(cnn(), 14, 14, 3), traced(cnn(), 14, 14, 3, sizes=(7, 13))
    for operation, same in zip(found.operations, other.operations, strict=True):
        assert operation.at(operation.flops, 7) == same.at(same.flops, 7)
        assert operation.at(operation.bytes_moved, 7) == same.at(same.bytes_moved, 7)
    assert found.activation_bytes == other.activation_bytes


def test_tracing_leaves_the_model_as_it_was() -> None:
    model = cnn()
    before = [np.array(weight) for weight in model.get_weights()]
    batch = np.ones((2, 14, 14, 3), np.float32)
    expected = model(batch).numpy()
    traced(model, 14, 14, 3)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert np.array_equal(model(batch).numpy(), expected)
    assert not any("call" in vars(layer) for layer in model.layers)


def test_a_model_without_weights_is_traced_in_no_memory() -> None:
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        pytest.skip("the peak of resident memory is read from /proc")
    traced(cnn(), 14, 14, 3)
    clear.write_text("5")  # the peak so far is forgotten
    before = _peak_bytes()
    with without_weights():
        model = keras.Sequential([keras.Input((16384,)), *(LAYERS.Dense(16384) for _ in range(8))])
    found = traced(model, 16384)
    assert found.num_parameters == 8 * (16384**2 + 16384)  # 8.6 GB
    assert found.flops() == (0, 2 * 16384**2 * (3 * 8 - 1))
    cnn()  # nor do its weights come into being with the next model
    assert _peak_bytes() - before < 200e6


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def job_for(data: Data) -> TrainJob:
    return TrainJob(model=lambda: None, data=data, global_batch_size=4, epochs=1, loss="cross_entropy")


def test_a_job_s_workload_holds_operations_tensors_and_input_bytes() -> None:
    data = Data(train=Arrays(np.zeros((8, 14, 14, 3), np.float32), np.zeros(8, np.int64)))
    work = profile_keras(cnn(), job_for(data), data)
    assert (work.num_tensors, work.input_bytes_per_example) == (8, FLOAT * 14 * 14 * 3 + 8)
    first, others = 2 * 14 * 14 * 6 * 9 * 3, 2 * 3 * 3 * 8 * 9 * 6 + 2 * 72 * 10
    # Forward, the gradients of weights, and those of inputs where they are asked for: not of the first layer's.
    assert work.flops_per_example == 2 * first + 3 * others
    dense = sum(o.calls * o.at(o.flops, 4) for o in work.operations if o.kind in DENSE)
    assert dense == 4 * work.flops_per_example
    assert type(work).from_json(work.to_json()) == work


@keras.saving.register_keras_serializable("tests")
class LooksAtValues(LAYERS.Layer):  # type: ignore[misc]
    def call(self, inputs: Any) -> Any:
        return tf.boolean_mask(inputs, tf.reduce_sum(inputs, 1) > -1.0)


def test_shapes_that_depend_on_values_are_refused_and_judged_by_layers() -> None:
    model = keras.Sequential([LooksAtValues(), LAYERS.Dense(2)])
    model(np.ones((2, 3), np.float32))
    with pytest.raises(InputError, match="not known before the run"):
        traced(model, 3)
    data = Data(train=Arrays(np.ones((8, 3), np.float32), np.zeros(8, np.int64)))
    work = profile_keras(model, job_for(data), data)
    assert work.operations == ()
    assert work.flops_per_example == 3 * 2 * 3 * 2
