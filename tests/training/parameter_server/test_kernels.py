"""Optimiser steps on flat slices: right, repeatable, and the same however the range is cut."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.training.optimizers import SGD, Adagrad, Adam, AdamW, Lamb, Optimizer
from leptonai.training.parameter_server import compiled_kernels
from leptonai.training.parameter_server.compiled_kernels import CompiledKernels
from leptonai.training.parameter_server.kernels import (
    Kernels,
    agree,
    all_finite,
    choose_kernels,
    initialise_states,
    num_states,
    state_names,
    weighted_sum,
)
from leptonai.training.parameter_server.lamb import LambRule
from leptonai.training.parameter_server.memory import ShardMemory, ShardShape
from leptonai.training.parameter_server.numpy_kernels import NumpyKernels
from leptonai.training.parameter_server.torch_kernels import TorchKernels

Floats = NDArray[np.float32]

ELEMENTWISE: list[SGD | Adam | AdamW | Adagrad] = [
    SGD(lr=0.1),
    SGD(lr=0.1, weight_decay=0.01),
    SGD(lr=0.1, momentum=0.9),
    SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    Adam(lr=0.01),
    AdamW(lr=0.01, weight_decay=0.1),
    AdamW(lr=0.01, weight_decay=0.0),
    Adagrad(lr=0.1),
    Adagrad(lr=0.1, initial_accumulator=0.1, weight_decay=0.01),
]


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run(kernels: Kernels, optimizer: Optimizer, cuts: list[int], steps: int = 3) -> tuple[Floats, Floats]:
    """Parameters and states after some steps, each applied between one cut and the next."""
    parameters = normal(cuts[-1])
    states = np.zeros((num_states(optimizer), cuts[-1]), np.float32)
    initialise_states(optimizer, states)
    for step in range(1, steps + 1):
        gradient = normal(cuts[-1], seed=step)
        for start, stop in pairwise(cuts):
            kernels.update(
                parameters[start:stop], gradient[start:stop], states[:, start:stop], lr=0.01 * step, step=step
            )
    return parameters, states


def framework(optimizer: Optimizer, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    match optimizer:
        case SGD():
            return torch.optim.SGD(
                parameters, lr=1.0, momentum=optimizer.momentum, nesterov=optimizer.nesterov,
                weight_decay=optimizer.weight_decay,
            )  # fmt: skip
        case Adam():
            return torch.optim.Adam(parameters, betas=optimizer.betas, eps=optimizer.eps)
        case AdamW():
            return torch.optim.AdamW(parameters, eps=optimizer.eps, weight_decay=optimizer.weight_decay)
        case Adagrad():
            return torch.optim.Adagrad(
                parameters, weight_decay=optimizer.weight_decay, eps=optimizer.eps,
                initial_accumulator_value=optimizer.initial_accumulator,
            )  # fmt: skip
    raise AssertionError


@pytest.mark.parametrize("kind", [NumpyKernels, TorchKernels, CompiledKernels])
@pytest.mark.parametrize("optimizer", ELEMENTWISE, ids=str)
def test_steps_are_those_of_the_framework(optimizer: Optimizer, kind: type[Kernels]) -> None:
    size = 20_000 // 16 * 16
    found, _ = run(kind(optimizer), optimizer, [0, size])  # type: ignore[call-arg]
    parameter = torch.nn.Parameter(torch.from_numpy(normal(size)))
    reference = framework(optimizer, [parameter])
    for step in (1, 2, 3):
        reference.param_groups[0]["lr"] = 0.01 * step
        parameter.grad = torch.from_numpy(normal(size, seed=step))
        reference.step()
    np.testing.assert_allclose(found, parameter.detach().numpy(), rtol=2e-5, atol=2e-6)


CUTS = st.lists(st.integers(1, 150), max_size=6, unique=True).map(
    lambda cuts: [0, *sorted(cut * 128 for cut in cuts), 151 * 128]
)
FINE_CUTS = st.lists(st.integers(1, 1200), max_size=6, unique=True).map(
    lambda cuts: [0, *sorted(cut * 16 for cut in cuts), 1201 * 16]
)


@pytest.mark.parametrize("kind", [NumpyKernels, TorchKernels, CompiledKernels])
@pytest.mark.parametrize("optimizer", ELEMENTWISE, ids=str)
def test_chunk_by_chunk_gives_the_bits_of_all_at_once(optimizer: Optimizer, kind: type[Kernels]) -> None:
    @given(st.one_of(CUTS, FINE_CUTS))
    @settings(max_examples=8, deadline=None)
    def same(cuts: list[int]) -> None:
        kernels = kind(optimizer)  # type: ignore[call-arg]
        whole, whole_states = run(kernels, optimizer, [0, cuts[-1]])
        parts, parts_states = run(kernels, optimizer, cuts)
        assert whole.tobytes() == parts.tobytes()
        assert whole_states.tobytes() == parts_states.tobytes()

    same()


def test_what_lies_between_tensors_stays_zero() -> None:
    for optimizer in ELEMENTWISE:
        zeros = np.zeros(64, np.float32)
        states = np.zeros((num_states(optimizer), 64), np.float32)
        choose_kernels(optimizer).update(zeros, np.zeros(64, np.float32), states, lr=0.1, step=1)
        assert not zeros.any()


# -- the choice ------------------------------------------------------------------------------------


@pytest.fixture
def nothing_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without a compiler."""
    monkeypatch.setattr(compiled_kernels, "library", lambda: None)


@pytest.mark.parametrize("optimizer", ELEMENTWISE, ids=str)
def test_compiled_kernels_are_chosen_where_there_is_a_compiler(optimizer: Optimizer) -> None:
    assert choose_kernels(optimizer).name == "compiled"


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("optimizer", ELEMENTWISE, ids=str)
def test_fused_kernels_are_chosen_where_they_are(optimizer: Optimizer) -> None:
    assert choose_kernels(optimizer).name == "torch"


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("broken", ["missing", "wrong", "other arguments"])
def test_without_sound_fused_kernels_the_plain_ones_are_chosen(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if broken == "missing":
        monkeypatch.delattr(torch, "_fused_adam_")
    elif broken == "wrong":
        monkeypatch.setattr(torch, "_fused_adam_", lambda parameters, *rest, **options: parameters[0].add_(1))
    else:
        monkeypatch.setattr(torch, "_fused_adam_", lambda parameters: None)
    kernels = choose_kernels(Adam())
    assert kernels.name == "numpy"
    assert agree(kernels, NumpyKernels(Adam()), 2)


# -- sums and checks -------------------------------------------------------------------------------


def test_a_weighted_sum_goes_in_the_order_given() -> None:
    gradients = [normal(64, seed=seed) for seed in range(3)]
    weights = [1.0, 0.3, 0.7]
    out, scratch = np.empty(64, np.float32), np.empty(64, np.float32)
    found = weighted_sum(gradients, weights, out, scratch)
    expected = (gradients[0] + gradients[1] * np.float32(0.3)) + gradients[2] * np.float32(0.7)
    assert found.tobytes() == expected.tobytes()


def test_one_gradient_that_counts_once_is_not_copied() -> None:
    gradient = normal(16)
    assert weighted_sum([gradient], [1.0], np.empty_like(gradient), np.empty_like(gradient)) is gradient


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 299_999, 262_144])
def test_one_bad_number_is_found(bad: float, place: int) -> None:
    values = normal(300_000)
    assert all_finite(values)
    values[place] = bad
    assert not all_finite(values)


def test_opposite_infinities_are_found_and_large_numbers_are_not_taken_for_them() -> None:
    assert not all_finite(np.array([math.inf, -math.inf], np.float32))
    assert all_finite(np.full(1000, 3e38, np.float32))
    assert all_finite(np.zeros(0, np.float32))


def test_states_are_named_and_begin_as_the_optimiser_says() -> None:
    assert [state_names(optimizer) for optimizer in (SGD(lr=1), SGD(lr=1, momentum=0.5), Adagrad(), Lamb())] == [
        (), ("momentum",), ("sum",), ("first", "second"),
    ]  # fmt: skip
    states = np.empty((1, 16), np.float32)
    initialise_states(Adagrad(initial_accumulator=0.25), states)
    assert (states == 0.25).all()


# -- LAMB ------------------------------------------------------------------------------------------


def lamb_by_hand(w: Floats, g: Floats, m: Floats, v: Floats, lamb: Lamb, lr: float, t: int) -> list[Floats]:
    """Algorithm 2 of You et al. 2020 on one tensor, in float64."""
    m = lamb.betas[0] * m + (1 - lamb.betas[0]) * g
    v = lamb.betas[1] * v + (1 - lamb.betas[1]) * g * g
    r = (m / (1 - lamb.betas[0] ** t)) / (np.sqrt(v / (1 - lamb.betas[1] ** t)) + lamb.eps)
    r = r + lamb.weight_decay * w
    norm_w, norm_r = np.linalg.norm(w), np.linalg.norm(r)
    return [w - lr * (norm_w / norm_r if norm_w > 0 and norm_r > 0 else 1.0) * r, m, v]


def test_lamb_scales_each_tensor_by_its_own_norms() -> None:
    lamb, ranges = Lamb(weight_decay=0.05), ((0, 100), (112, 3000), (3008, 3010))
    memory = ShardMemory.create(
        ShardShape(num_elements=3024, num_states=2, num_slots=1, chunk_elements=1024, has_reads=False)
    )
    rule = LambRule(memory, lamb, ranges)
    memory.parameters[:3008] = normal(3008)
    expected = [
        [memory.parameters[a:b].astype(np.float64), np.zeros(b - a), np.zeros(b - a)] for a, b in ranges
    ]
    for step in (1, 2, 3):
        gradient = normal(3024, seed=step)
        for chunk in range(memory.shape.num_chunks):
            start, stop = memory.chunk_range(chunk)
            rule.update(
                chunk, start, stop, lambda low, high, g=gradient: g[low:high],  # type: ignore[misc]
                whole=(0, 3024), lr=0.1, step=step,
            )  # fmt: skip
        expected = [
            lamb_by_hand(*state[:1], gradient[a:b].astype(np.float64), *state[1:], lamb, 0.1, step)  # type: ignore[arg-type]
            for (a, b), state in zip(ranges, expected, strict=True)
        ]
    for (a, b), (w, m, v) in zip(ranges, expected, strict=True):
        np.testing.assert_allclose(memory.parameters[a:b], w, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(memory.states[:, a:b], [m, v], rtol=1e-5, atol=1e-7)
    assert not memory.states[:, 100:112].any()
    memory.close()


def test_lamb_without_tensors_is_refused() -> None:
    memory = ShardMemory.create(
        ShardShape(num_elements=16, num_states=2, num_slots=1, chunk_elements=16, has_reads=False)
    )
    with pytest.raises(InputError, match="tensor by tensor"):
        LambRule(memory, Lamb(), ())
    memory.close()
