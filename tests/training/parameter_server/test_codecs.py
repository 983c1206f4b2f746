"""Codecs: what they promise of errors, sizes and bias, and that no payload can do harm."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from leptonai.core.errors import Fault, InputError
from leptonai.training.parameter_server.codecs.base import (
    HEADER_BYTES,
    Codec,
    Float32,
    Stateful,
    codec_state,
    restore_codec,
)
from leptonai.training.parameter_server.codecs.parse import (
    check_codec,
    mode_codec,
    parse_codec,
)
from leptonai.training.parameter_server.codecs.shapes import shard_shapes
from leptonai.training.parameter_server.consistency import (
    Asp,
    AsyncDiloco,
    Bsp,
    Consistency,
    Diloco,
    ElasticAveraging,
    LocalSgd,
    StreamingDiloco,
)
from leptonai.training.parameter_server.flat import TensorSpec
from leptonai.training.parameter_server.layout import lay_out

ALL = (
    "fp16", "bf16", "int8", "int8(block=64)", "int8(stochastic=True)", "int4", "int4(stochastic=True)", "e3m0",
    "onebit", "onebit(block=64)", "topk(0.1)", "topk(0.1)+int8", "topk(0.05)+onebit", "randomk(0.1)",
    "randomk(0.1)+int4", "randomk(0.1, scaled=True)", "powersgd(rank=2)", "powersgd(rank=1)+fp16",
)  # fmt: skip
SHAPES = ((3, (12, 10)), (123, (7,)), (130, (5, 4, 6)), (250, (2, 3)))
SHAPES_END = 256
TINY = float(np.finfo(np.float32).smallest_subnormal)


def codec_of(text: str, *, seed: int = 0, size: int = SHAPES_END) -> Codec:
    return parse_codec(text, seed=seed, shapes=SHAPES if size >= SHAPES_END else ())


def normal(size: int, *, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(size, dtype=np.float32)


def through(codec: Codec, values: NDArray[np.float32]) -> NDArray[np.float32]:
    out = np.full(values.size, np.nan, np.float32)
    codec.decode(memoryview(codec.encode(values)), out)
    return out


values_of_any_size = st.integers(0, 700).flatmap(
    lambda size: hnp.arrays(
        np.float32,
        size,
        elements=st.floats(-(2.0**100), 2.0**100, width=32)
        | st.sampled_from([0.0, -0.0, TINY, -1e-39, 1e30]),
    )
)


@pytest.mark.parametrize("text", ALL)
@given(values=values_of_any_size)
@settings(max_examples=20, deadline=None)
def test_any_values_come_back_finite_and_reproducibly(text: str, values: NDArray[np.float32]) -> None:
    kept = values.copy()
    payload = codec_of(text, size=values.size).encode(values)
    first, second = np.empty_like(values), np.ones_like(values)
    codec_of(text, seed=9, size=values.size).decode(memoryview(payload), first)
    codec_of(text, size=values.size).decode(memoryview(bytes(payload)), second)
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(values, kept)
    if text != "randomk(0.1, scaled=True)":  # for comparisons without feedback only
        assert len(payload) <= max(4 * values.size, HEADER_BYTES + 64)


@pytest.mark.parametrize("text", ALL)
@pytest.mark.parametrize("size", [0, 1, 2, 3, 255, 257, 4097, 65_537, 140_001])
def test_zeros_stay_zeros_at_every_size(text: str, size: int) -> None:
    np.testing.assert_array_equal(through(codec_of(text, size=size), np.zeros(size, np.float32)), 0.0)


@pytest.mark.parametrize("text", ALL)
@pytest.mark.parametrize("size", [16, 48, 1024, 4096, 65_536, 65_552])
def test_a_payload_fits_where_the_raw_gradient_would(text: str, size: int) -> None:
    assert len(parse_codec(text).encode(normal(size))) <= 4 * size + (48 if "scaled" in text else 0)


def largest_of_each(values: NDArray[np.float32], block: int) -> NDArray[np.float64]:
    padded = np.zeros(-(-values.size // block) * block)
    padded[: values.size] = np.abs(values)
    return np.repeat(padded.reshape(-1, block).max(axis=1), block)[: values.size]


@given(values=values_of_any_size)
@settings(max_examples=50, deadline=None)
@example(values=np.array([1e30, -1e30, 1.0, 0.0], np.float32))
@example(values=np.array([TINY, -TINY, 0.0], np.float32))
@example(values=np.array([2.0**127, -(2.0**127), 1.0], np.float32))
def test_rounding_errors_are_bounded(values: NDArray[np.float32]) -> None:
    exact = values.astype(np.float64)

    def error(text: str) -> NDArray[np.float64]:
        return np.abs(through(parse_codec(text), values) - exact)

    largest = largest_of_each(values, 256)
    up = 1.0 + 2.0**-7 + 1e-6  # by which a scale may exceed the exact one
    floor = 2.0**-126  # scales end where their reciprocals do
    assert (error("int8") <= np.maximum(largest / 254 * up, floor)).all()
    assert (error("int4") <= np.maximum(largest / 14 * up, floor)).all()
    assert (error("int8(stochastic=True)") <= np.maximum(largest / 127 * up, floor)).all()
    assert (error("e3m0") <= np.maximum(np.abs(exact) / 3, np.maximum(largest * up / 128, floor))).all()
    assert (error("bf16") <= np.maximum(np.abs(exact) * 2.0**-8, 2.0**-133)).all()
    assert (
        error("fp16") <= np.maximum(np.abs(exact) * 2.0**-11, largest_of_each(values, 4096) * 2.0**-39)
    ).all()


def test_fp16_keeps_what_a_half_can_hold() -> None:
    halves = np.arange(0, 1 << 16, dtype=np.uint16).view(np.float16)
    values = halves[np.isfinite(halves)].astype(np.float32)
    np.testing.assert_array_equal(through(parse_codec("fp16"), values), values)
    small = np.array([1e-9, -3e-10], np.float32)  # where a plain half has nothing left
    np.testing.assert_allclose(through(parse_codec("fp16"), small), small, rtol=2.0**-11)


def test_int8_and_int4_keep_whole_numbers() -> None:
    for text, top in (
        ("int8", 127),
        ("int4", 7),
        ("int8(stochastic=True)", 127),
        ("int4(stochastic=True)", 7),
    ):
        values = np.arange(-top, top + 1, dtype=np.float32) * np.float32(0.25)
        np.testing.assert_array_equal(through(parse_codec(text), values), values)


def test_e3m0_holds_seven_powers_of_two_and_takes_the_nearest() -> None:
    levels = np.concatenate([[0.0], 2.0 ** np.arange(-6, 1)]).astype(np.float32)
    codec = parse_codec("e3m0")
    np.testing.assert_array_equal(through(codec, np.concatenate([levels, -levels])), [*levels, *-levels])
    fine = np.linspace(0.0, 1.0, 251, dtype=np.float32)
    nearest = np.abs(fine[:, None].astype(np.float64) - levels).min(axis=1)
    np.testing.assert_allclose(np.abs(through(codec, fine) - fine), nearest, atol=1e-7)
    np.testing.assert_array_equal(through(codec, np.array([1.0, 0.0079, 0.0078], np.float32)), [1, 1 / 64, 0])


def test_one_bit_sends_the_means_of_either_sign() -> None:
    values = np.array([1.0, 3.0, -2.0, 0.0, -6.0], np.float32)
    third = np.float32(4.0 / 3.0)
    np.testing.assert_array_equal(through(parse_codec("onebit"), values), [third, third, -4, third, -4])


@given(size=st.integers(200, 2000), share=st.floats(0.001, 0.2), seed=st.integers(0, 99), ties=st.booleans())
@settings(max_examples=40, deadline=None)
def test_top_k_keeps_just_the_largest_and_of_equals_the_first(
    size: int, share: float, seed: int, ties: bool
) -> None:
    values = normal(size, seed=seed)
    if ties:
        values = np.round(values * 2) / 2
    num_kept = math.ceil(size * share)
    order = np.lexsort((np.arange(size), -np.abs(values)))[:num_kept]
    expected = np.zeros(size, np.float32)
    expected[order] = values[order]
    np.testing.assert_array_equal(through(parse_codec(f"topk({share!r})"), values), expected)


@pytest.mark.parametrize("kind", ["normal", "misleading", "constant"])
def test_top_k_is_exact_on_long_arrays_whatever_the_sample_says(kind: str) -> None:
    values = normal(300_000)
    if kind == "misleading":  # all but a few of the largest where the sample does not look
        where = np.random.Philox(key=values.size).random_raw(1 << 16) % np.uint64(values.size)
        values[where] += 100.0
        rest = np.setdiff1d(np.arange(values.size), where)
        values[rest] = 0.0
    if kind == "constant":
        values[:] = 2.0
    out = through(parse_codec("topk(0.01)"), values)
    kept = np.flatnonzero(out)
    assert kept.size == 3000
    assert np.abs(values[kept]).min() >= np.delete(np.abs(values), kept).max()
    if kind == "constant":
        np.testing.assert_array_equal(kept, np.arange(3000))


def test_random_k_keeps_one_of_each_stretch_and_others_each_time() -> None:
    codec, values = parse_codec("randomk(0.01)", seed=3), np.arange(1, 1001, dtype=np.float32)
    first, second = np.flatnonzero(through(codec, values)), np.flatnonzero(through(codec, values))
    np.testing.assert_array_equal(first // 100, np.arange(10))
    assert (first != second).any()
    again = parse_codec("randomk(0.01)", seed=3)
    np.testing.assert_array_equal(first, np.flatnonzero(through(again, values)))


@pytest.mark.parametrize(
    ("text", "steps"),
    [("int8(stochastic=True)", 127), ("int4(stochastic=True)", 7), ("randomk(0.05, scaled=True)", 0)],
)
def test_the_mean_over_many_draws_is_the_value(text: str, steps: int) -> None:
    values, num_draws = normal(600, seed=5), 1500
    codec = parse_codec(text, seed=11)
    assert codec.unbiased
    total, squares = np.zeros(600), np.zeros(600)
    for _ in range(num_draws):
        out = through(codec, values).astype(np.float64)
        total += out
        squares += out * out
    mean = total / num_draws
    deviation = np.sqrt(np.maximum(squares / num_draws - mean**2, 0.0) / num_draws)
    # A value close to a level is rounded away from it so rarely that the deviation seen may be 0: an event
    # expected 12 times stays out with odds of 1 in 160,000. 1e-4 is the 16-bit uniform's own step.
    jump = largest_of_each(values, 256) / steps if steps else np.abs(values) * 20.0
    assert (np.abs(mean - values) <= 5.0 * deviation + 12.0 * jump / num_draws + 1e-4).all()
    bias = (mean - values) @ values / (values @ values)
    assert abs(bias) <= 5.0 * np.linalg.norm(deviation * values) / (values @ values) + 1e-4


def test_deterministic_codecs_say_that_they_are_biased() -> None:
    biased = {text for text in ALL if not codec_of(text).unbiased}
    assert biased == set(ALL) - {
        "int8(stochastic=True)",
        "int4(stochastic=True)",
        "randomk(0.1, scaled=True)",
    }


def test_power_sgd_recovers_a_low_rank_matrix_and_sends_the_rest_as_it_is() -> None:
    values = normal(4000, seed=1)
    values[3:3003] = (normal(2 * 50).reshape(50, 2) @ normal(2 * 60, seed=2).reshape(2, 60)).reshape(-1)
    codec = parse_codec("powersgd(rank=2)", shapes=((3, (50, 3, 20)), (3003, (900,)), (3903, (2, 3))))
    out = through(codec, values)
    np.testing.assert_allclose(out, values, atol=2e-5)
    np.testing.assert_array_equal(out[3003:], values[3003:])
    assert len(codec.encode(values)) == 2 * HEADER_BYTES + 4 * (2 * (50 + 60) + 1000)


@pytest.mark.parametrize("num_shards", [1, 2, 3])
def test_power_sgd_finds_the_matrices_of_every_shard(num_shards: int) -> None:
    tensors = [
        TensorSpec(name="scalar", shape=()),
        TensorSpec(name="large", shape=(90, 41)),
        TensorSpec(name="bias", shape=(41,)),
        TensorSpec(name="small", shape=(8, 5, 4)),
    ]
    layout = lay_out(tensors, num_shards)
    shards = [np.zeros(length, np.float32) for length in layout.lengths]
    columns = normal(41)
    rank_one = np.outer(normal(90, seed=1), columns).astype(np.float32)
    layout.scatter(1, rank_one.reshape(-1), shards)
    num_bytes = 0
    for shard, values in enumerate(shards):
        shapes = shard_shapes(layout, tensors, shard)
        ends = [start + math.prod(shape) for start, shape in shapes]
        assert all(end <= start for end, (start, _) in zip(ends, shapes[1:], strict=False))
        codec = parse_codec("powersgd(rank=1)", shapes=shapes)
        np.testing.assert_allclose(through(codec, values), values, atol=1e-4)
        num_bytes += len(codec.encode(values))
    assert num_bytes < 4 * sum(layout.lengths) / 4


def test_power_sgd_warm_start_finds_the_strongest_direction() -> None:
    left, right = normal(40), normal(30, seed=1)
    values = (
        (np.outer(left, right) + 0.3 * normal(1200, seed=2).reshape(40, 30)).astype(np.float32).reshape(-1)
    )
    codec = parse_codec("powersgd(rank=1)", shapes=((0, (40, 30)),))
    errors = [float(np.linalg.norm(through(codec, values) - values)) for _ in range(4)]
    best = float(np.sqrt((np.linalg.svd(values.reshape(40, 30))[1][1:] ** 2).sum()))
    assert errors[3] == pytest.approx(best, rel=1e-3)
    assert errors[0] > errors[1]
    through(codec, np.zeros(1200, np.float32))  # leaves no direction to go on from
    assert float(np.linalg.norm(through(codec, values))) > 0.5 * float(np.linalg.norm(values))


@pytest.mark.parametrize(("text", "ratio"), [("int8", 3.94), ("int4", 7.75), ("e3m0", 7.75), ("onebit", 31.0),
                                             ("topk(0.01)", 66.0), ("topk(0.01)+int8", 132.0)])  # fmt: skip
def test_everything_counted_a_million_numbers_shrink_as_promised(text: str, ratio: float) -> None:
    values = normal(1 << 20)
    assert 4 * values.size / len(parse_codec(text).encode(values)) >= ratio


@pytest.mark.parametrize("text", ALL)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3.2e38])
def test_what_is_not_finite_is_not_encoded(text: str, bad: float) -> None:
    for at in (0, 255, 299):
        values = normal(300)
        values[at] = bad
        with pytest.raises(Fault, match="cannot encode"):
            codec_of(text).encode(values)


@pytest.mark.parametrize("text", ALL)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_a_damaged_payload_is_a_fault_or_finite_numbers(text: str, data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([0, 1, 17, 300, 1025]))
    codec = codec_of(text, size=size)
    payload = codec.encode(normal(size))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(payload) - 1))
        payload[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        payload = payload[: data.draw(st.integers(0, len(payload)))] + data.draw(st.binary(max_size=9))
    guarded = np.full(size + 64, 7.0, np.float32)
    try:
        codec.decode(memoryview(payload), guarded[32 : 32 + size])
    except Fault:
        pass
    else:
        assert np.isfinite(guarded).all()
    assert (guarded[:32] == 7.0).all()
    assert (guarded[32 + size :] == 7.0).all()


@pytest.mark.parametrize("text", ALL)
@given(junk=st.binary(max_size=200), size=st.integers(0, 400))
@settings(max_examples=15, deadline=None)
def test_junk_is_a_fault(text: str, junk: bytes, size: int) -> None:
    with pytest.raises(Fault, match="malformed"):
        codec_of(text, size=size).decode(memoryview(junk), np.empty(size, np.float32))


@pytest.mark.parametrize("text", ALL)
def test_a_payload_of_another_length_codec_or_option_is_a_fault(text: str) -> None:
    payload = memoryview(codec_of(text).encode(normal(300)))
    other = "int8" if not text.startswith("int8") else "fp16"
    for codec, size in ((codec_of(text), 299), (codec_of(text), 301), (parse_codec(other), 300)):
        with pytest.raises(Fault, match="malformed"):
            codec.decode(payload, np.empty(size, np.float32))


def test_top_k_indices_must_rise_within_their_block() -> None:
    codec, values = parse_codec("topk(0.01)"), np.zeros(1000, np.float32)
    values[[5, 900]] = 1.0
    payload = codec.encode(values)
    indices_at = HEADER_BYTES + 8 + 4
    for indices in ((900, 5), (5, 5), (5, 1000), (5, 65_535)):
        payload[indices_at : indices_at + 4] = np.array(indices, np.uint16).tobytes()
        with pytest.raises(Fault, match="malformed"):
            codec.decode(memoryview(payload), np.empty(1000, np.float32))


@pytest.mark.parametrize("text", ALL)
def test_a_restored_codec_goes_on_as_if_never_stopped(text: str) -> None:
    codec, later = codec_of(text, seed=4), codec_of(text, seed=4)
    codec.encode(normal(300))
    codec.encode(normal(300, seed=1))
    restore_codec(later, codec_state(codec))
    assert codec.encode(normal(300, seed=2)) == later.encode(normal(300, seed=2))


def test_a_state_of_another_codec_is_refused() -> None:
    for text in ("fp16", "int8", "topk(0.1)", "randomk(0.1)", "int8(stochastic=True)", "powersgd(rank=2)"):
        with pytest.raises(InputError):
            restore_codec(codec_of(text), {"right/0": np.zeros((3, 3), np.float32)})
    assert not isinstance(Float32(), Stateful)


@pytest.mark.parametrize("text", ALL)
def test_names_read_back(text: str) -> None:
    assert codec_of(codec_of(text).name).name == codec_of(text).name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "unknown name"),
        ("zip", "fp16, bf16, int8"),
        ("int8+topk(0.1)", "can only come first"),
        ("topk(0.1)+randomk(0.1)", "can only come first"),
        ("int8+int4", "impossible order"),
        ("fp16+powersgd(rank=2)", "can only come first"),
        ("powersgd(rank=2)+onebit", "after powersgd: fp16, bf16, int8"),
        ("topk(0.1)+int8+fp16", "impossible order"),
        ("topk", "share is missing"),
        ("powersgd", "rank is missing"),
        ("topk(0)", r"share in \(0, 1\]"),
        ("topk(1.5)", r"share in \(0, 1\]"),
        ("randomk(True)", r"share in \(0, 1\]"),
        ("powersgd(rank=0)", "rank to be from 1"),
        ("powersgd(rank=1.5)", "rank to be from 1"),
        ("int8(block=7)", "block to be even"),
        ("int8(256)", "cannot read"),
        ("int8(block=__import__('os'))", "cannot read"),
        ("int8(bits=3)", "int8 takes block, stochastic"),
        ("int8(stochastic=1)", "stochastic"),
        ("fp16(2)", "fp16 takes nothing in brackets"),
        ("topk(0.1", "cannot read"),
        ("topk(0.1, share=0.1)", "cannot read"),
        ("onebit(block=12)", "multiple of 8"),
        ("randomk(0.1, scaled=2)", "True or False"),
    ],
)  # fmt: skip
def test_bad_text_is_an_input_error_that_says_what_to_write(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_codec(text)
    assert re.search(said, str(caught.value))


def test_a_chain_reads_with_spaces() -> None:
    assert parse_codec(" topk(share=0.01) + int8(block=64) ").name == "topk(0.01)+int8(block=64)"


def test_shapes_that_overlap_or_leave_the_array_are_input_errors() -> None:
    with pytest.raises(InputError, match="overlap"):
        parse_codec("powersgd(rank=1)", shapes=((0, (10, 10)), (50, (10, 10))))
    with pytest.raises(InputError, match="need 100 numbers"):
        parse_codec("powersgd(rank=1)", shapes=((0, (10, 10)),)).encode(normal(99))


@pytest.mark.parametrize(
    "text", ["", "fp16", "bf16", "int8", "int4", "e3m0", "onebit", "topk", "randomk", "powersgd"]
)
def test_which_mode_takes_which_codec(text: str) -> None:
    written = {"topk": "topk(0.1)", "randomk": "randomk(0.1)", "powersgd": "powersgd(rank=2)"}.get(text, text)
    plain = text in ("", "fp16", "bf16", "int8", "int4", "e3m0")
    modes: dict[Consistency, bool] = {
        Bsp(): True,
        Asp(): True,
        LocalSgd(steps=4): True,
        Diloco(): plain,
        AsyncDiloco(): plain,
        StreamingDiloco(): text == "",
        ElasticAveraging(): text == "",
    }
    for mode, allowed in modes.items():
        if allowed:
            check_codec(written, mode)
        else:
            with pytest.raises(InputError, match="does not go with"):
                check_codec(written, mode)


def test_scaled_random_k_is_no_codec_of_a_run() -> None:
    with pytest.raises(InputError, match="error feedback"):
        check_codec("randomk(0.1, scaled=True)", Bsp())


def test_streaming_diloco_brings_its_own_codec() -> None:
    assert [mode_codec("", StreamingDiloco(bits=bits)) for bits in (0, 4, 8)] == ["", "e3m0", "int8"]
    assert mode_codec("fp16", Bsp()) == "fp16"
