"""The arithmetic of the local modes, by hand on two parameters, and how few bytes it takes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.training.optimizers import SGD, AdamW
from leptonai.training.parameter_server.codecs.parse import mode_codec, parse_codec
from leptonai.training.parameter_server.consistency import (
    Asp,
    AsyncDiloco,
    Backup,
    Bsp,
    Diloco,
    ElasticAveraging,
    LocalSgd,
    Ssp,
    StreamingDiloco,
)
from leptonai.training.parameter_server.movements import adopt, elastic_pull, mix, movement
from leptonai.training.parameter_server.outer import age_weight, outer_optimizer, push_weight
from leptonai.training.parameter_server.streaming import arriving, due, in_flight

Vector = NDArray[np.float32]


def vector(*values: float) -> Vector:
    return np.array(values, np.float32)


class OuterStep:
    """SGD as torch does it (dampening 0): b = m b + g, then w -= lr (g + m b) with Nesterov, else lr b."""

    def __init__(self, rule: SGD, num_elements: int) -> None:
        self.rule, self.momentum = rule, np.zeros(num_elements, np.float32)

    def __call__(self, weights: Vector, grads: Vector) -> Vector:
        m, lr = np.float32(self.rule.momentum), np.float32(self.rule.lr)
        self.momentum = m * self.momentum + grads
        direction = grads + m * self.momentum if self.rule.nesterov else self.momentum
        return weights - lr * direction


def outer_of(mode: object, num_elements: int = 2) -> OuterStep:
    rule = outer_optimizer(mode, AdamW())  # type: ignore[arg-type]
    assert isinstance(rule, SGD)
    return OuterStep(rule, num_elements)


def mean_movement(anchor: Vector, locals_: list[Vector]) -> Vector:
    total = np.zeros_like(anchor)
    for local in locals_:
        out = np.empty_like(anchor)
        movement(anchor, local, out)
        total += np.float32(1.0 / len(locals_)) * out
    return total


def test_local_sgd_takes_over_the_mean_of_the_weights() -> None:
    anchor = vector(1.0, 2.0)
    locals_ = [vector(0.0, 2.5), vector(0.5, 1.0)]
    new = outer_of(LocalSgd(steps=4))(anchor, mean_movement(anchor, locals_))
    np.testing.assert_array_equal(new, [0.25, 1.75])
    adopt(new, anchor, locals_[0])
    np.testing.assert_array_equal(anchor, new)
    np.testing.assert_array_equal(locals_[0], new)


def test_diloco_three_outer_steps_by_hand_and_by_torch() -> None:
    mode = Diloco(steps=2, lr=0.5, momentum=0.5)
    step, weights = outer_of(mode), vector(1.0, 2.0)
    # Mean movements of two workers, then: b = b/2 + g; w -= (g + b/2) / 2.
    rounds = (
        # where the workers end up          g              b                w
        (((0.0, 2.0), (1.0, 1.0)), (0.5, 0.5), (0.5, 0.5), (0.625, 1.625)),
        (((0.125, 1.625), (0.625, 2.625)), (0.25, -0.5), (0.5, -0.25), (0.375, 1.9375)),
        (((0.375, 0.9375), (0.375, 1.9375)), (0.0, 0.5), (0.25, 0.375), (0.3125, 1.59375)),
    )
    reference = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    theirs = torch.optim.SGD([reference], lr=0.5, momentum=0.5, nesterov=True)
    for ends, grads, momentum, after in rounds:
        found = mean_movement(weights, [vector(*end) for end in ends])
        np.testing.assert_array_equal(found, grads)
        weights = step(weights, found)
        np.testing.assert_array_equal(step.momentum, momentum)
        np.testing.assert_array_equal(weights, after)
        reference.grad = torch.tensor(grads)
        theirs.step()
        np.testing.assert_array_equal(reference.detach().numpy(), after)


def test_async_diloco_discounts_by_age() -> None:
    mode = AsyncDiloco(steps=2, lr=0.5, momentum=0.5, age_decay=math.log(2.0))
    assert [push_weight(mode, age=age, num_workers=2) for age in (0, 1, 2)] == pytest.approx(
        [0.5, 0.25, 0.125]
    )
    assert age_weight(AsyncDiloco(age_decay=0.0), age=9, num_workers=4) == 0.25
    # Two workers start from (1, 2). The first ends at (0, 2), the second, an update later, at (1, 0).
    step, weights = outer_of(mode), vector(1.0, 2.0)
    weights = step(weights, np.float32(0.5) * vector(1.0, 0.0))  # b = (.5, 0), w -= (.75, 0) / 2
    np.testing.assert_array_equal(weights, [0.625, 2.0])
    weights = step(weights, np.float32(0.25) * vector(0.0, 2.0))  # b = (.25, .5), w -= (.125, .75) / 2
    np.testing.assert_allclose(weights, [0.5625, 1.625], rtol=1e-6)


def test_elastic_averaging_moves_worker_and_centre_towards_each_other() -> None:
    centre, local, push = vector(1.0, 2.0), vector(5.0, -2.0), vector(0.0, 0.0)
    elastic_pull(centre, local, push, alpha=0.25)
    np.testing.assert_array_equal(local, [4.0, -1.0])
    np.testing.assert_array_equal(push, [-1.0, 1.0])
    moved = vector(1.5, 2.0)  # another worker was there in between
    np.testing.assert_array_equal(outer_of(ElasticAveraging(alpha=0.25))(moved, push), [2.5, 1.0])
    assert push_weight(ElasticAveraging(), age=3, num_workers=8) == 1.0


def test_streaming_diloco_two_fragments_overlap_one_by_hand() -> None:
    """One worker whose local step subtracts 1 from both weights; a fragment is one weight."""
    mode = StreamingDiloco(steps=4, fragments=2, overlap=1, bits=0, mixing=0.5, lr=0.5, momentum=0.5)
    local, anchor, shown = vector(10.0, 20.0), vector(10.0, 20.0), vector(10.0, 20.0)
    outers = [outer_of(mode, 1), outer_of(mode, 1)]
    trace = []
    for t in range(1, 8):
        local -= 1.0
        for fragment in arriving(mode, t):
            part = slice(fragment, fragment + 1)
            mix(shown[part], anchor[part], local[part], mixing=mode.mixing)
        for fragment in due(mode, t):
            part = slice(fragment, fragment + 1)
            out = np.empty(1, np.float32)
            movement(anchor[part], local[part], out)
            shown[part] = outers[fragment](shown[part], out)
        trace.append((local.tolist(), anchor.tolist(), shown.tolist()))
    assert trace == [
        # local          anchor         global
        ([9.0, 19.0], [10.0, 20.0], [10.0, 20.0]),
        ([8.0, 18.0], [10.0, 20.0], [8.5, 20.0]),  # 0 sent: g = 2, b = 2, w -= (2 + 1) / 2
        ([7.75, 17.0], [8.5, 20.0], [8.5, 20.0]),  # 0 arrives: (7 + 8.5) / 2
        ([6.75, 16.0], [8.5, 20.0], [8.5, 17.0]),  # 1 sent: g = 4, b = 4, w -= (4 + 2) / 2
        ([5.75, 16.0], [8.5, 17.0], [8.5, 17.0]),  # 1 arrives: (15 + 17) / 2
        ([4.75, 15.0], [8.5, 17.0], [5.4375, 17.0]),  # 0 sent: g = 3.75, b = 4.75, w -= (3.75 + 2.375) / 2
        ([4.59375, 14.0], [5.4375, 17.0], [5.4375, 17.0]),  # 0 arrives: (3.75 + 5.4375) / 2
    ]


@st.composite
def streaming(draw: st.DrawFn) -> StreamingDiloco:
    steps = draw(st.integers(1, 40))
    return StreamingDiloco(
        steps=steps, fragments=draw(st.integers(1, steps)), overlap=draw(st.integers(0, steps - 1))
    )


@given(mode=streaming(), first=st.integers(1, 200))
@settings(max_examples=50, deadline=None)
def test_every_fragment_is_due_once_in_any_steps_in_a_row_and_arrives_overlap_later(
    mode: StreamingDiloco, first: int
) -> None:
    window = range(first, first + mode.steps)
    assert sorted(f for t in window for f in due(mode, t)) == list(range(mode.fragments))
    assert max(len(due(mode, t)) for t in window) == 1  # the peak is one fragment a step
    for t in window:
        assert arriving(mode, t + mode.overlap) == due(mode, t)
        assert len(set(in_flight(mode, t))) == len(in_flight(mode, t))
    gaps = np.diff([t for t in range(1, 3 * mode.steps + 1) if due(mode, t)])
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1  # evenly apart


@given(mode=streaming())
@settings(max_examples=50, deadline=None)
def test_what_was_sent_has_arrived_or_is_in_flight(mode: StreamingDiloco) -> None:
    flying: list[int] = []
    for t in range(1, 3 * mode.steps):
        flying += due(mode, t)
        for fragment in arriving(mode, t):
            assert flying[0] == fragment
            flying.pop(0)
        assert tuple(flying) == in_flight(mode, t)


def test_mixing_keeps_its_share_of_the_local_weights() -> None:
    for mixing, after in ((0.0, 8.0), (0.25, 7.0), (0.75, 5.0)):
        anchor, local = vector(1.0), vector(4.0)
        mix(vector(8.0), anchor, local, mixing=mixing)
        assert (local[0], anchor[0]) == (after, 8.0)
    with pytest.raises(InputError, match="mixing"):
        mix(vector(8.0), vector(1.0), vector(4.0), mixing=1.0)


def test_which_optimiser_and_weight_each_mode_means() -> None:
    inner = AdamW(lr=3e-4)
    for mode in (Bsp(), Asp(), Ssp(staleness=2), Backup()):
        assert outer_optimizer(mode, inner) == inner
        assert push_weight(mode, age=5, num_workers=4) == 1.0
    nesterov = SGD(lr=0.7, momentum=0.9, nesterov=True)
    for local in (Diloco(), StreamingDiloco(), AsyncDiloco()):
        assert outer_optimizer(local, inner) == nesterov
    assert outer_optimizer(Diloco(momentum=0.0), inner) == SGD(lr=0.7)
    for grouped in (LocalSgd(steps=3), Diloco(), StreamingDiloco()):
        assert push_weight(grouped, age=0, num_workers=4) == 0.25
    with pytest.raises(InputError, match="num_workers"):
        push_weight(Bsp(), age=0, num_workers=0)
    with pytest.raises(InputError, match="age"):
        push_weight(AsyncDiloco(), age=-1, num_workers=1)


def delay_compensated(grads: Vector, now: Vector, read: Vector, lam: float) -> Vector:
    """Zheng et al. 2017, DC-ASGD-c: what the server applies in place of a gradient computed at ``read``."""
    return grads + np.float32(lam) * grads * grads * (now - read)


def test_delay_compensation_by_hand_and_for_a_parabola() -> None:
    found = delay_compensated(vector(2.0, -3.0), vector(1.5, 1.0), vector(1.0, 2.0), 0.5)
    np.testing.assert_array_equal(found, [3.0, -7.5])  # 2 + .5*4*.5; -3 + .5*9*-1
    # Loss a w^2 / 2 has gradient a w; where lam * g^2 equals its curvature the stale gradient becomes exact.
    a, read, now = 0.5, vector(2.0, 2.0), vector(1.0, 4.0)
    stale = np.float32(a) * read
    np.testing.assert_allclose(
        delay_compensated(stale, now, read, a / float(stale[0]) ** 2), a * now, rtol=1e-6
    )


def framed(num_bytes: int) -> int:
    """With a 64-byte header for each frame of up to 1 MiB."""
    return num_bytes + 64 * math.ceil(num_bytes / (1 << 20))


def bytes_of(text: str, num_elements: int) -> int:
    if not text:
        return framed(4 * num_elements)
    values = np.random.default_rng(0).standard_normal(num_elements, dtype=np.float32)
    return framed(len(parse_codec(text).encode(values)))


@pytest.mark.parametrize("num_elements", [1 << 20, 1_234_576])
def test_bytes_against_float32_bsp_over_a_hundred_steps(num_elements: int) -> None:
    """Each step of BSP pushes and pulls four bytes a parameter; the local modes send both ways once in 100."""
    bsp = 100 * 2 * bytes_of("", num_elements)
    diloco = 2 * bytes_of("int8", num_elements)
    mode = StreamingDiloco(steps=100, fragments=4, bits=4)
    sent = [
        2 * bytes_of(mode_codec("", mode), num_elements // 4) for t in range(1, 101) for _ in due(mode, t)
    ]
    assert bsp / diloco >= 390
    assert bsp / sum(sent) >= 770
    assert max(sent) <= bsp / 100 / 4 / 7.5  # the peak of a step is one fragment
