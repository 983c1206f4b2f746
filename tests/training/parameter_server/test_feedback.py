"""Error feedback: of what a codec leaves out nothing is lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from leptonai.core.errors import Fault, InputError
from leptonai.training.parameter_server.codecs.base import Codec
from leptonai.training.parameter_server.codecs.feedback import ErrorFeedback
from leptonai.training.parameter_server.codecs.parse import parse_codec

SIZE = 3000
SHAPES = ((0, (40, 30)), (1200, (36, 50)))
CODECS = (
    "fp16", "bf16", "int8", "int8(stochastic=True)", "int4", "int4(stochastic=True)", "e3m0", "onebit",
    "topk(0.05)", "topk(0.05)+int8", "randomk(0.05)", "randomk(0.05)+int4", "powersgd(rank=2)",
)  # fmt: skip


def codec_of(text: str) -> Codec:
    return parse_codec(text, seed=7, shapes=SHAPES)


def normal(seed: int, size: int = SIZE) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(size, dtype=np.float32)


def decoded(text: str, payload: bytearray, size: int = SIZE) -> NDArray[np.float32]:
    out = np.empty(size, np.float32)
    codec_of(text).decode(memoryview(payload), out)
    return out


def assert_same_sum(*, left: tuple[NDArray[np.float32], ...], right: tuple[NDArray[np.float32], ...]) -> None:
    """Equal sums, but for one float32 rounding of each addition."""
    sums = [np.sum([part.astype(np.float64) for part in side], axis=0) for side in (left, right)]
    largest = np.max([np.abs(part) for part in (*left, *right)], axis=0)
    assert (np.abs(sums[0] - sums[1]) <= 2.0 * np.spacing(largest)).all()


@pytest.mark.parametrize("text", CODECS)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-20, 1e-3, 1.0, 1e20]))
@settings(max_examples=6, deadline=None)
def test_what_is_sent_and_what_is_kept_are_what_came_in(text: str, seed: int, scale: float) -> None:
    feedback = ErrorFeedback(codec_of(text), SIZE)
    for step in range(4):
        values, before = normal(seed + step) * np.float32(scale), feedback.residual.copy()
        sent = decoded(text, feedback.encode(values))
        assert_same_sum(left=(sent, feedback.residual), right=(values, before))


@pytest.mark.parametrize("text", CODECS)
def test_over_a_run_nothing_is_lost_and_the_residual_stays_bounded(text: str) -> None:
    feedback, num_steps = ErrorFeedback(codec_of(text), SIZE), 150
    came, went, worst = np.zeros(SIZE), np.zeros(SIZE), 0.0
    for step in range(num_steps):
        values = normal(step) + np.float32(0.1)
        came += values
        went += decoded(text, feedback.encode(values))
        worst = max(worst, float(np.linalg.norm(feedback.residual)))
    np.testing.assert_allclose(went + feedback.residual, came, atol=num_steps * 1e-5)
    # A codec that keeps the share d of the energy leaves at most about 2/d inputs behind (Karimireddy et al. 2019).
    assert worst <= 2.0 / 0.05 * np.sqrt(SIZE)
    assert (
        np.linalg.norm(went / num_steps - 0.1) <= np.linalg.norm(came / num_steps - 0.1) + worst / num_steps
    )


@pytest.mark.parametrize("text", ["int8", "topk(0.05)+int8", "powersgd(rank=2)"])
def test_a_rejected_payload_goes_back_into_the_residual(text: str) -> None:
    feedback = ErrorFeedback(codec_of(text), SIZE)
    feedback.encode(normal(0))
    values, before = normal(1), feedback.residual.copy()
    sent = decoded(text, feedback.encode(values))
    feedback.rejected(again=False)
    assert_same_sum(left=(feedback.residual, sent), right=(values, before, sent))


def test_a_rejected_payload_whose_examples_come_again_leaves_no_trace() -> None:
    feedback = ErrorFeedback(codec_of("topk(0.05)"), SIZE)
    feedback.encode(normal(0))
    before = feedback.residual.copy()
    feedback.encode(normal(1))
    feedback.rejected(again=True)
    np.testing.assert_array_equal(feedback.residual, before)
    with pytest.raises(AssertionError):
        feedback.rejected(again=True)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_what_cannot_be_encoded_leaves_the_residual_as_it_was(bad: float) -> None:
    feedback = ErrorFeedback(codec_of("int8"), SIZE)
    feedback.encode(normal(0))
    before, values = feedback.residual.copy(), normal(1)
    values[5] = bad
    with pytest.raises(Fault, match="cannot encode"):
        feedback.encode(values)
    np.testing.assert_array_equal(feedback.residual, before)


@pytest.mark.parametrize("text", CODECS)
def test_restored_feedback_goes_on_as_if_never_stopped(text: str) -> None:
    feedback, later = ErrorFeedback(codec_of(text), SIZE), ErrorFeedback(codec_of(text), SIZE)
    feedback.encode(normal(0))
    later.restore(feedback.state())
    assert later.encode(normal(1)) == feedback.encode(normal(1))
    np.testing.assert_array_equal(later.residual, feedback.residual)
    with pytest.raises(InputError, match="not of 5 numbers"):
        ErrorFeedback(codec_of("fp16"), 5).restore(feedback.state())


def test_scaled_random_k_is_refused() -> None:
    with pytest.raises(InputError, match="scaled"):
        ErrorFeedback(parse_codec("randomk(0.1, scaled=True)"), 10)
