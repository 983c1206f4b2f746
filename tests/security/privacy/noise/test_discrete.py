"""Discrete noise: exactly the distribution it claims, in the paths taken always, seldom and almost never."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from leptonai.core.errors import Fault, InputError
from leptonai.security.privacy.noise.coins import Coins
from leptonai.security.privacy.noise.compiled.library import REFILL, discrete_library
from leptonai.security.privacy.noise.discrete import DiscreteSource
from leptonai.security.privacy.noise.discrete_table import Shape, Table, make_table
from leptonai.security.privacy.noise.keystream import Keystream

KEY = bytes(range(32))
KERNELS = pytest.mark.parametrize("compiled", [True, False])
needs_compiler = pytest.mark.skipif(discrete_library() is None, reason="there is no C compiler")
SHAPES: list[Shape] = ["gaussian", "laplace"]


def source(*, compiled: bool, total_bits: int = 64, key: bytes = KEY) -> DiscreteSource:
    """A source; with fewer bits in its table, more is left to exact coins."""
    made = DiscreteSource(key, compiled=compiled)
    made._total_bits = total_bits
    return made


def draw(made: DiscreteSource, shape: Shape, parameter: Fraction, count: int) -> NDArray[np.int64]:
    if shape == "gaussian":
        return made.gaussian(count, sigma_squared=parameter)
    return made.laplace(count, scale=parameter)


def log_weight(shape: Shape, parameter: Fraction, values: NDArray[np.int64]) -> NDArray[np.float64]:
    sizes = np.abs(values).astype(np.float64)
    return -(sizes**2) / (2 * float(parameter)) if shape == "gaussian" else -sizes / float(parameter)


def p_value(shape: Shape, parameter: Fraction, samples: NDArray[np.int64]) -> float:
    """Of Pearson's test: every integer with at least ten samples expected is a cell, and so is each tail."""
    deviation = math.sqrt(parameter) if shape == "gaussian" else 1.5 * float(parameter)
    reach = int(45 * deviation) + 50
    values = np.arange(-reach, reach + 1)
    chances = np.exp(log_weight(shape, parameter, values))
    chances /= chances.sum()
    often = np.flatnonzero(chances * samples.size >= 10)
    low, high = often[0], often[-1] + 1
    cells = np.clip(samples + reach, low - 1, high) - (low - 1)
    counts = np.bincount(cells, minlength=high - low + 2).astype(float)
    expected = samples.size * np.concatenate(
        [[chances[:low].sum()], chances[low:high], [chances[high:].sum()]]
    )
    if expected[0] < 5:  # the tails, alike, are one cell with the middle of the distribution
        counts = np.append(counts[1:-2], counts[-2:].sum() + counts[0])
        expected = np.append(expected[1:-2], expected[-2:].sum() + expected[0])
    return float(stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue)


# -- the distribution ----------------------------------------------------------------------------------


@KERNELS
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("parameter", ["1/5", "1/4", "2", "81/4", "1000/3", "12345"])
def test_the_samples_follow_the_distribution(shape: Shape, parameter: str, compiled: bool) -> None:
    if shape == "laplace" and parameter == "12345":
        parameter = "150"
    samples = draw(source(compiled=compiled), shape, Fraction(parameter), 400_000 if compiled else 30_000)
    assert p_value(shape, Fraction(parameter), samples) > 0.001


@KERNELS
@pytest.mark.parametrize(
    ("shape", "parameter", "total_bits"),
    [
        ("gaussian", "1/4", 8),
        ("gaussian", "2", 9),
        ("gaussian", "400", 10),
        ("gaussian", "90001/17", 11),
        ("laplace", "1/4", 8),
        ("laplace", "2", 9),
        ("laplace", "301/7", 11),
    ],
)
def test_the_rare_path_follows_it_too(shape: Shape, parameter: str, total_bits: int, compiled: bool) -> None:
    table = make_table(shape, Fraction(parameter), total_bits)
    assert table.room > 2**total_bits / 20  # else the test would say nothing about the path
    samples = draw(source(compiled=compiled, total_bits=total_bits), shape, Fraction(parameter), 6000)
    assert p_value(shape, Fraction(parameter), samples) > 0.001


def test_the_test_sees_a_wrong_distribution() -> None:
    samples = source(compiled=True).gaussian(400_000, sigma_squared=Fraction(81, 4))
    assert p_value("gaussian", Fraction(79, 4), samples) < 1e-6
    assert p_value("gaussian", Fraction(81, 4), np.abs(samples)) < 1e-6
    rounded = np.rint(np.random.default_rng(1).normal(0, 0.7, 400_000)).astype(np.int64)
    assert p_value("gaussian", Fraction(49, 100), rounded) < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("parameter", ["1/4", "2", "30"])
def test_the_plain_algorithm_follows_it(shape: Shape, parameter: str) -> None:
    coins = Coins(Keystream(KEY))
    one = coins.gaussian if shape == "gaussian" else coins.laplace
    samples = np.array([one(Fraction(parameter)) for _ in range(1200)])
    assert p_value(shape, Fraction(parameter), samples) > 0.001


@KERNELS
def test_large_scales_are_those_of_the_continuous_distributions(compiled: bool) -> None:
    made, count = source(compiled=compiled), 100_000 if compiled else 8000
    wide = made.gaussian(count, sigma_squared=Fraction(2**60)).astype(np.float64) / 2**30
    assert stats.kstest(wide, "norm").pvalue > 0.001
    wide = made.laplace(count, scale=Fraction(2**47)).astype(np.float64) / 2**47
    assert stats.kstest(wide, "laplace").pvalue > 0.001
    assert np.unique(np.abs(wide)).size > 0.999 * count


# -- the table -----------------------------------------------------------------------------------------


def entry_weights(table: Table) -> list[int]:
    """The weight each entry has in the alias table."""
    weights = [0] * table.entries
    size = 1 << (64 - table.dropped_bits - table.slot_bits)
    for slot, (cut, alias) in enumerate(zip(table.cuts.tolist(), table.aliases.tolist(), strict=True)):
        for entry, weight in ((slot, cut), (alias, size - cut)):
            if weight:
                weights[entry] += weight
    return weights


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=25)
@given(
    parameter=st.fractions(min_value=Fraction(1, 1000), max_value=2**40, max_denominator=10**6),
    total_bits=st.sampled_from([16, 40, 64]),
)
def test_the_table_holds_the_weights_and_has_room_for_the_rest(
    shape: Shape, parameter: Fraction, total_bits: int
) -> None:
    table = make_table(shape, parameter, total_bits)
    parts = [weight for weight in table.whole if weight]
    assert entry_weights(table) == [*parts, table.room]
    assert sum(table.whole) + table.room == 2**total_bits
    assert table.room >= 2 * len(table.whole) + 2
    one = Fraction(1)
    for bucket in range(0, len(table.whole) + 130, 13):
        low, high = table._residue(bucket, one, 40)
        assert -(2**-40) <= low <= high < 2  # two units of room hold a residue
        if bucket >= len(table.whole):  # and in group g beyond, 2^-g / 64
            assert high <= Fraction(1, 64 << ((bucket - len(table.whole)) // 64)) + Fraction(1, 2**40)


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=25)
@given(parameter=st.fractions(min_value=Fraction(1, 10), max_value=2**30, max_denominator=1000))
def test_no_bucket_is_kept_more_surely_than_its_farthest_integer(shape: Shape, parameter: Fraction) -> None:
    table = make_table(shape, parameter)
    width = 1 << table.width_bits
    part, whole = table.gamma_ratio()
    for bucket in range(0, table.entries - 1, 5):
        start, offset = bucket * width, width - 1
        most = table.gamma(start + offset) - table.gamma(start)
        steps = offset * (2 * start + offset) if shape == "gaussian" else offset
        assert most == Fraction(steps * part, whole) < 1
        assert Fraction(int(table.sure[bucket]), 2**64) - most < Fraction(1, 2**64)
        assert int(table.sure[bucket]) >= most * 2**64
    assert steps * part < 2**64
    assert whole < 2**64


# -- the coins -----------------------------------------------------------------------------------------


class Words:
    """A keystream of given words."""

    def __init__(self, words: Iterator[int]) -> None:
        self._words = words

    def words(self, count: int) -> NDArray[np.uint64]:
        return np.array([next(self._words) for _ in range(count)], dtype=np.uint64)


def reference_coin(part: int, whole: int, words: Iterator[int]) -> bool:
    """exp(-part / whole), each toss comparing as many words as it takes."""
    k = 1
    while True:
        chance, drawn, bits = Fraction(part, whole * k), 0, 0
        while True:
            drawn, bits = (drawn << 64) | next(words), bits + 64
            if Fraction(drawn + 1, 2**bits) <= chance:
                break
            if Fraction(drawn, 2**bits) >= chance:
                return k % 2 == 1
        k += 1


@needs_compiler
@settings(max_examples=150)
@given(
    whole=st.integers(2, 2**64 - 1), share=st.floats(0, 1, exclude_max=True),
    steps=st.lists(st.sampled_from(["tie", "above", "below", "any"]), min_size=1, max_size=6), data=st.data(),
)  # fmt: skip
def test_the_c_coin_is_the_reference_even_where_words_tie(
    whole: int, share: float, steps: list[str], data: st.DataObject
) -> None:
    part = min(whole - 1, int(share * whole))
    words: list[int] = []
    for k, step in enumerate(steps, 1):
        tie = (part << 64) // (whole * k)
        word = {"tie": tie, "above": tie + 1, "below": max(0, tie - 1)}.get(step)
        words.append(min(2**64 - 1, data.draw(st.integers(0, 2**64 - 1)) if word is None else word))
    words += [data.draw(st.integers(0, 2**64 - 1)) for _ in range(3)] + [2**64 - 1] * 40
    given_words = np.array(words, dtype=np.uint64)
    calls: list[int] = []
    refill = REFILL(lambda: calls.append(1) or int(len(calls) == 1))
    library = discrete_library()
    assert library is not None
    found = library.lepton_exp_coin(part, whole, given_words.ctypes.data, given_words.size, refill)
    tied_exactly = any((part << 64) % (whole * k) == 0 for k in range(1, 12))
    if not tied_exactly:  # there the two may take a different number of words
        assert found == reference_coin(part, whole, iter(words))


@needs_compiler
def test_ties_are_settled_by_the_next_word() -> None:
    library = discrete_library()
    assert library is not None
    tie, last = 2**64 // 3, 2**64 - 1
    for words, expected in [
        ([tie, 0, last], 0),  # 1/3 = .0101...: below it, so heads, then tails at once
        ([tie, last, 0], 1),  # above: tails
        ([tie, tie, tie - 1, last], 0),
        ([tie, tie, tie + 1, last], 1),
        ([tie - 1, last], 0),
        ([tie + 1, last], 1),
    ]:
        given_words = np.array(words + [last] * 4, dtype=np.uint64)
        refill = REFILL(lambda: 1)
        assert library.lepton_exp_coin(1, 3, given_words.ctypes.data, given_words.size, refill) == expected


@needs_compiler
def test_a_stream_that_ends_ends_the_coin() -> None:
    library = discrete_library()
    assert library is not None
    words = np.zeros(1, dtype=np.uint64)
    assert library.lepton_exp_coin(1, 2, words.ctypes.data, 1, REFILL(lambda: 0)) == -1


@pytest.mark.parametrize("gamma", ["0", "1/1000", "1/2", "1", "7/3"])
def test_exponential_coins_fall_as_often_as_they_should(gamma: str) -> None:
    coins = Coins(Keystream(KEY))
    chance, count = math.exp(-Fraction(gamma)), 4000
    heads = sum(coins.exp_minus(Fraction(gamma)) for _ in range(count))
    assert abs(heads - count * chance) <= 4 * math.sqrt(count * chance * (1 - chance))


@pytest.mark.parametrize("limit", [2, 3, 1000, 2**64, 2**64 + 1, 3**50])
def test_whole_numbers_below_a_limit_are_uniform(limit: int) -> None:
    coins = Coins(Keystream(KEY))
    drawn = [coins.below(limit) for _ in range(1500)]
    assert min(drawn) >= 0
    assert max(drawn) < limit
    cells = min(limit, 10)
    counts = np.bincount([value * cells // limit for value in drawn], minlength=cells)
    expected = [-(-limit * (i + 1) // cells) - -(-limit * i // cells) for i in range(cells)]
    assert stats.chisquare(counts, [len(drawn) * (size / limit) for size in expected]).pvalue > 0.001


def test_a_real_coin_takes_words_until_it_knows() -> None:
    def third(bits: int) -> tuple[Fraction, Fraction]:
        return Fraction(2**bits // 3, 2**bits), Fraction(2**bits // 3 + 1, 2**bits)

    tie = 2**64 // 3
    for words, expected in [([0], True), ([tie + 1], False), ([tie, tie, 0], True), ([tie, tie + 1], False)]:
        left = iter(words)
        assert Coins(Words(left)).real(third) is expected  # type: ignore[arg-type]
        assert next(left, None) is None


# -- the source ----------------------------------------------------------------------------------------


@KERNELS
@settings(max_examples=15)
@given(count=st.integers(0, 3000))
def test_the_count_is_kept_and_the_key_decides(compiled: bool, count: int) -> None:
    samples = source(compiled=compiled).gaussian(count, sigma_squared=Fraction(100))
    assert samples.shape == (count,)
    assert samples.dtype == np.int64
    again = source(compiled=compiled).gaussian(count, sigma_squared=Fraction(100))
    np.testing.assert_array_equal(samples, again)


@KERNELS
def test_sources_are_independent(compiled: bool) -> None:
    sources = [
        source(compiled=compiled),
        source(compiled=compiled, key=bytes(32)),
        DiscreteSource(compiled=compiled),
    ]
    drawn = [made.gaussian(2000, sigma_squared=Fraction(10**12)) for made in sources for _ in range(2)]
    for i, first in enumerate(drawn):
        for second in drawn[:i]:
            assert abs(np.corrcoef(first, second)[0, 1]) < 0.15
            assert np.intersect1d(first, second).size < 20


@KERNELS
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("parameter", [Fraction(0), Fraction(-1), Fraction(2**62), Fraction(1, 2**62)])
def test_parameters_that_do_not_fit_are_refused(shape: Shape, parameter: Fraction, compiled: bool) -> None:
    with pytest.raises(InputError):
        draw(source(compiled=compiled), shape, parameter, 1)


@KERNELS
@pytest.mark.parametrize(
    "parameter",
    [Fraction(2**62 - 1), Fraction(1, 2**62 - 1), Fraction(2**62 - 1, 2**62 - 3), Fraction(2**62 - 1, 2**30)],
)
def test_the_largest_parameters_that_fit_work(parameter: Fraction, compiled: bool) -> None:
    samples = source(compiled=compiled).gaussian(2000, sigma_squared=parameter)
    deviation = math.sqrt(parameter)
    assert np.abs(samples).max() < 6 * deviation + 1
    assert samples.std() == pytest.approx(deviation, rel=0.1, abs=0.01)


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(InputError):
        DiscreteSource().gaussian(-1, sigma_squared=Fraction(1))
    with pytest.raises(InputError):
        DiscreteSource().laplace(1, scale=Fraction(2**48))


@needs_compiler
def test_a_failure_within_c_comes_out_of_it() -> None:
    made = source(compiled=True)
    child = os.fork()
    if child == 0:
        found = 1
        try:
            made.gaussian(10, sigma_squared=Fraction(4))
        except Fault:
            found = 0
        finally:
            os._exit(found)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@needs_compiler
@pytest.mark.parametrize("failing", ["fill", "rare"])
def test_an_error_in_a_callback_is_raised(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Callable[..., None]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Keystream if failing == "fill" else Table, failing, fail)
    with pytest.raises(KeyboardInterrupt):
        source(compiled=True, total_bits=11).gaussian(5000, sigma_squared=Fraction(4))
