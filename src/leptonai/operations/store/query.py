"""From tiers to an answer: which tier serves which part of a query, joined and brought to the query's step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leptonai.operations.series import Series
from leptonai.operations.store.block import Block
from leptonai.operations.store.limits import RESOLUTION_MS, TIERS, Tier
from leptonai.operations.store.rollup import Rows, between, join, roll_up

_WIDEST_MS = max(RESOLUTION_MS.values())

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selected:
    """One series of an answer; all columns are equally long and ascend in time.

    Args:
        series: which.
        times_ms: of the samples; with a step, where each stretch begins.
        values: samples with their bits; with a step, the last of each stretch.
        minima, maxima: with a step, the extremes of each stretch (NaN: nothing but NaN in it); else the values.
        sums, counts: of the samples that are not NaN; their ratio is the mean.
        tiers: where the rows came from, the finest first; samples not yet cut into chunks are raw.
    """

    series: Series
    times_ms: Ints
    values: Floats
    minima: Floats
    maxima: Floats
    sums: Floats
    counts: Floats
    tiers: tuple[Tier, ...]


def tiers_for(step_ms: int | None) -> Sequence[Tier]:
    """Tiers in the order in which they are asked: the coarsest that the step allows, coarser ones, finer ones.

    >>> tiers_for(60_000), tiers_for(None), tiers_for(90_000)
    (['minute', 'hour', 'raw'], ['raw'], ['raw', 'minute', 'hour'])
    """
    if step_ms is None:
        return ["raw"]
    fit = max(
        number
        for number, tier in enumerate(TIERS)
        if not RESOLUTION_MS[tier] or not step_ms % RESOLUTION_MS[tier]
    )
    return [*TIERS[fit:], *reversed(TIERS[:fit])]


def answer(
    series: Series,
    series_id: int,
    blocks: Callable[[Tier], Sequence[Block]],
    waiting: tuple[Ints, Floats],
    *,
    start_ms: int,
    end_ms: int,
    step_ms: int | None,
) -> Selected | None:
    """The rows of one series between two times, both included; None: there are none.

    Each tier serves what lies before the part that the tiers asked before it serve, up to where one of its own
    stretches begins, so that no sample counts twice.
    """
    parts: list[Rows] = []
    used: set[Tier] = set()
    served_from = 1 << 62
    whole_end_ms = end_ms - end_ms % _WIDEST_MS + _WIDEST_MS - 1  # whole stretches, so that counts compare
    for tier in tiers_for(step_ms):
        width = max(RESOLUTION_MS[tier], 1)
        spans = [(block, span) for block in blocks(tier) if (span := block.span(series_id)) is not None]
        if not spans:
            continue
        low, limit = start_ms - start_ms % width, -(-served_from // width) * width
        wanted = [
            block for block, (first, last) in spans if last >= low and first < min(limit, whole_end_ms + 1)
        ]
        found = join([rows for block in wanted if (rows := block.rows(series_id)) is not None])
        found = between(found, low, min(whole_end_ms, limit - 1))
        if limit > served_from:
            found, parts = _seam(found, parts, limit - width, limit)
        if len(found):
            used.add(tier)
        parts = [found, *parts]
        served_from = min(served_from, min(first for _, (first, _) in spans))
        if served_from <= start_ms:
            break
    parts = [between(part, start_ms - start_ms % _WIDEST_MS, end_ms) for part in parts]
    head = between(Rows.of_samples(*waiting), start_ms, end_ms)
    if len(head):
        used.add("raw")
    rows = join([part for part in [*parts, head] if len(part)])
    if not len(rows):
        return None
    if step_ms is not None:
        rows = roll_up(rows, step_ms)
    return Selected(
        series=series, times_ms=rows.times_ms, values=rows.last, minima=rows.minima, maxima=rows.maxima,
        sums=rows.sums, counts=rows.counts, tiers=tuple(tier for tier in TIERS if tier in used),
    )  # fmt: skip


def _seam(coarse: Rows, finer: list[Rows], start_ms: int, end_ms: int) -> tuple[Rows, list[Rows]]:
    """Who serves the one stretch in which the finer tiers begin: they, where they hold all of it; else the coarse.

    Finer data may begin there because it was recorded from then on, or because what came before was dropped.
    """
    held = sum(float(between(part, start_ms, end_ms - 1).counts.sum()) for part in finer)
    if float(between(coarse, start_ms, end_ms - 1).counts.sum()) > held:
        return coarse, [between(part, end_ms, 1 << 62) for part in finer]
    return between(coarse, -(1 << 62), start_ms - 1), finer
