"""The work of transformers against the formulas of the papers they come from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.compute.transformer import Transformer
from leptonai.compute.transformer_workload import activation_bytes, operations_of, workload_of
from leptonai.compute.workload import Workload
from leptonai.core.errors import InputError

SHAPES = st.builds(
    lambda layers, heads, head, sequence, vocabulary: Transformer(
        num_layers=layers, hidden=heads * head, num_heads=heads, sequence=sequence, vocabulary=vocabulary
    ),
    st.integers(1, 6), st.integers(1, 8), st.sampled_from([16, 64, 128]), st.integers(1, 4096), st.integers(1, 60000),
)  # fmt: skip


@given(SHAPES)
def test_flops_are_those_of_the_formula(shape: Transformer) -> None:
    """Narayanan et al. 2021: 96 B s l h^2 (1 + s / 6h + V / 16lh) with recomputation; 72, and V / 12lh, without."""
    s, h, layers, v = shape.sequence, shape.hidden, shape.num_layers, shape.vocabulary
    again = workload_of(shape, global_batch_size=4, total_steps=2, recompute=True)
    once = workload_of(shape, global_batch_size=4, total_steps=2)
    assert again.flops_per_example == pytest.approx(
        96 * s * layers * h**2 * (1 + s / (6 * h) + v / (16 * layers * h))
    )
    assert once.flops_per_example == pytest.approx(
        72 * s * layers * h**2 * (1 + s / (6 * h) + v / (12 * layers * h))
    )


@given(SHAPES)
def test_layers_hold_all_the_work(shape: Transformer) -> None:
    work = workload_of(shape, global_batch_size=4, total_steps=2)
    assert sum(layer.num_parameters for layer in work.layers) == work.num_parameters == shape.num_parameters
    assert sum(layer.flops for layer in work.layers) == work.flops_per_example
    matmuls = sum(o.calls * o.at(o.flops, 3) for o in work.operations if o.kind == "matmul")
    assert matmuls == pytest.approx(3 * work.flops_per_example)
    for operation in work.operations:
        if operation.kind == "matmul":
            product = 2.0
            for dim in operation.dims:
                product *= operation.at(dim, 3)
            assert product == operation.at(operation.flops, 3)


def test_activations_are_those_of_the_paper() -> None:
    """Korthikanti et al. 2022, equation 1: s b h (34 + 5 a s / h) a layer; with recomputation 2 s b h."""
    shape = Transformer(num_layers=48, hidden=6144, num_heads=64, sequence=2048, vocabulary=51200)
    deeper = Transformer(num_layers=49, hidden=6144, num_heads=64, sequence=2048, vocabulary=51200)
    stream = 2048 * 6144
    layer = activation_bytes(deeper) - activation_bytes(shape)
    assert layer == 34 * stream + 5 * 64 * 2048**2
    assert activation_bytes(deeper, recompute=True) - activation_bytes(shape, recompute=True) == 2 * stream


def test_counts_and_lengths() -> None:
    shape = Transformer(num_layers=2, hidden=8, num_heads=2, sequence=4, vocabulary=16)
    work = workload_of(shape, global_batch_size=4, total_steps=10, num_examples=21)
    assert (work.num_examples, work.steps_per_epoch, work.total_steps) == (21, 6, 10)
    assert work.num_tensors == 2 * 12 + 4
    assert work.input_bytes_per_example == 4 * 8
    assert work.parameter_bytes == 2 * shape.num_parameters
    assert [layer.name for layer in work.layers] == ["embedding", "layers.0", "layers.1", "head"]
    assert Workload.from_json(work.to_json()) == work


def test_recomputation_repeats_the_layers_alone() -> None:
    shape = Transformer(num_layers=2, hidden=8, num_heads=2, sequence=4, vocabulary=16)
    forward = [o for o in operations_of(shape) if not o.backward and o.layer.startswith("layers")]
    extra = len(operations_of(shape, recompute=True)) - len(operations_of(shape))
    assert extra == len(forward)


def test_a_batch_of_nothing_is_refused() -> None:
    shape = Transformer(num_layers=1, hidden=8, num_heads=2, sequence=4, vocabulary=16)
    with pytest.raises(InputError, match="global_batch_size"):
        workload_of(shape, global_batch_size=0, total_steps=10)
