"""The streaming detector's arithmetic in NumPy: what ``streaming.c`` does, operation by operation, and slower.

Sums run in the same order as in C (``cumsum`` is sequential, ``sum`` is not), so the results are equal.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonai.operations.detect import streaming_state as s

Floats = NDArray[np.float64]
State = Any
"""One record of :data:`~leptonai.operations.detect.streaming_state.STATE`, shape (1,)."""

_NONE = -1.0
"""The distance of a channel that has nothing to say of this point."""


def take(state: State, values: Floats, seconds: Floats) -> Floats:
    """Take in points; the evidence of every channel comes back, shape (points, channels), -log10 of a p-value.

    A value that is not finite is passed over and leaves zeros.
    """
    evidence = np.zeros((len(values), len(s.CHANNELS)))
    for row, value, at_seconds in zip(evidence, values.tolist(), seconds.tolist(), strict=True):
        if math.isfinite(value):
            row[:] = _take_one(state[0], value, at_seconds)
    return evidence


def _take_one(state: State, raw: float, seconds: float) -> list[float]:
    distances = [_NONE] * len(s.CHANNELS)
    raw = min(max(raw, -s.LARGEST_VALUE), s.LARGEST_VALUE)
    _pass_time(state, seconds)
    if state["num_points"] == 0:
        state["anchor"] = raw
    value = raw - float(state["anchor"])
    state["largest"] = max(abs(raw), abs(value), s.LARGEST_DECAY * float(state["largest"]))
    rounding = s.ROUNDING_SHARE * float(state["largest"])
    previous = float(state["recent"][state["num_points"] % s.RECENT])
    state["num_points"] += 1
    state["num_together"] += 1
    state["recent"][state["num_points"] % s.RECENT] = value
    _window_distances(state, distances)
    _seasonal_distances(state, value, seconds, distances)
    if state["num_together"] > 1:
        _spread_distance(state, value - previous, distances)
    evidence = [0.0] * len(s.CHANNELS)
    for channel, found in enumerate(distances):
        if found < 0.0:
            continue
        distance = 0.0 if found <= rounding else found
        weight = s.WINDOW_WEIGHT if channel >= s.LEVEL else 1.0
        evidence[channel] = _tail_evidence(state, channel, distance) * weight
        _tail_learn(state, channel, distance)
    if state["num_points"] % s.AGEING_POINTS == 0:
        state["uses"] //= 2
    return evidence


def _pass_time(state: State, seconds: float) -> None:
    passed = seconds - float(state["last_seconds"])
    if state["num_points"] and passed > 0.0:
        if state["interval_seconds"] == 0.0:
            state["interval_seconds"] = passed
        elif passed > s.GAP_INTERVALS * float(state["interval_seconds"]):
            state["num_together"] = state["num_moves"] = 0
        interval = float(state["interval_seconds"])
        state["interval_seconds"] = interval + s.INTERVAL_RATE * (min(passed, 2.0 * interval) - interval)
    state["last_seconds"] = seconds


def _window_distances(state: State, distances: list[float]) -> None:
    together = min(int(state["num_together"]), 2 * s.SHIFT_POINTS)
    newest_first = (int(state["num_points"]) - np.arange(together)) % s.RECENT
    sums = np.cumsum(state["recent"][newest_first])
    for book, scales in enumerate(s.SCALES):
        lengths = [min(scale, together) for scale in scales]
        means = [float(sums[length - 1]) / length for length in lengths]
        distances[s.SHAPE + book] = _novelty(state, book, means)
    if together == 2 * s.SHIFT_POINTS:
        later = float(sums[s.SHIFT_POINTS - 1])
        earlier = float(sums[2 * s.SHIFT_POINTS - 1]) - later
        distances[s.SHIFT] = abs(later - earlier) / s.SHIFT_POINTS


def _novelty(state: State, book: int, means: list[float]) -> float:
    """The distance to the nearest prototype, which then moves nearer; a far point becomes a new one."""
    count, uses, distance = int(state["num_prototypes"][book]), state["uses"][book], _NONE
    prototypes = state["prototypes"][book]
    if count:
        from_all = np.zeros(count)
        for scale, mean in enumerate(means):
            from_all += np.abs(mean - prototypes[scale, :count])
        best = int(from_all.argmin())
        distance, usual = float(from_all[best]), float(state["usual_distance"][book])
        state["num_distances"][book] += 1
        rate = max(1.0 / float(state["num_distances"][book]), s.USUAL_RATE)
        state["usual_distance"][book] = usual + rate * (distance - usual)
        if distance <= s.NEW_RATIO * usual:
            for scale, mean in enumerate(means):
                prototypes[scale, best] += s.MOVE_RATE * (mean - prototypes[scale, best])
            uses[best] += 1
            return distance
    if count < s.NUM_PROTOTYPES:
        place = count
        state["num_prototypes"][book] += 1
    else:
        place = int(uses.argmin())
    prototypes[: len(means), place] = means
    uses[place] = 1
    return distance


def _seasonal_distances(state: State, value: float, seconds: float, distances: list[float]) -> None:
    interval = float(state["interval_seconds"])
    day_rate = min(s.DAY_RATE, s.DAY_VISIT_RATE * interval / s.DAY_SLOT_SECONDS)
    week_rate = min(s.WEEK_RATE, s.WEEK_VISIT_RATE * interval / s.WEEK_SLOT_SECONDS)
    day_slot = int(math.floor(seconds / s.DAY_SLOT_SECONDS) % s.DAY_SLOTS)
    week_slot = int(math.floor(seconds / s.WEEK_SLOT_SECONDS) % s.WEEK_SLOTS)
    day = _residual(value, state["day_levels"], state["day_visits"], day_slot, day_rate)
    week = _residual(value, state["week_levels"], state["week_visits"], week_slot, week_rate)
    if week is not None:
        distances[s.WEEK] = abs(week)
    if day is None:
        return
    distances[s.DAY] = abs(day)
    state["residuals"][state["num_residuals"] % s.RESIDUALS] = day
    state["num_residuals"] += 1
    if state["num_residuals"] >= s.RESIDUALS:
        distances[s.LEVEL] = abs(float(np.cumsum(state["residuals"])[-1]) / s.RESIDUALS)


def _residual(
    value: float, levels: Floats, visits: NDArray[np.int64], slot: int, rate: float
) -> float | None:
    """Distance from the usual level of this time, with its sign; None: too few visits."""
    difference, seen = value - float(levels[slot]), int(visits[slot])
    levels[slot] += max(1.0 / (seen + 1.0), rate) * difference
    visits[slot] += 1
    return difference if seen >= s.MIN_VISITS else None


def _spread_distance(state: State, move: float, distances: list[float]) -> None:
    state["moves"][state["num_moves"] % s.MOVES] = abs(move)
    state["num_moves"] += 1
    if state["num_moves"] < s.MOVES:
        return
    mean, before = float(np.cumsum(state["moves"])[-1]) / s.MOVES, float(state["usual_move"])
    state["num_spreads"] += 1
    state["usual_move"] = before + max(1.0 / float(state["num_spreads"]), s.SPREAD_RATE) * (mean - before)
    if state["num_spreads"] > 1:
        distances[s.SPREAD] = abs(mean - before)


def _tail_evidence(state: State, channel: int, distance: float) -> float:
    """-log10 of the chance of a distance this large, from the channel's own past."""
    count, past = (
        int(state["tail_kept"][channel]),
        float(min(int(state["tail_seen"][channel]), s.WINDOW_POINTS)),
    )
    if past < s.MIN_POINTS or distance <= 0.0 or distance < state["tail_floor"][channel]:
        return 0.0
    kept = state["tail_values"][channel][:count].astype(np.float64)
    above = count - int(kept.searchsorted(distance * (1.0 - s.TIE_SHARE)))
    found = -math.log10((above + 1.0) / (past + 1.0))
    if channel == s.SHIFT:
        largest, middle = float(kept[-1]), float(kept[count - 1 - min(int(past) // 2, count - 1)])
        if distance > largest > middle:
            beyond = s.RECORD_STEEPNESS * (distance - largest) / (largest - middle) / math.log(10.0)
            found = math.log10(past + 1.0) + beyond
    else:
        top = min(int(max(s.MIN_TAIL, s.TAIL_SHARE * past)), count)
        if above < top:
            edge = float(kept[count - top])
            excess = float(np.cumsum(kept[count - top :])[-1]) / top - edge
            if excess > s.TIE_SHARE * edge:
                found = math.log10(past / top) + top * math.log10(1.0 + (distance - edge) / excess / top)
            elif distance > edge * (1.0 + s.TIE_SHARE):
                found = math.log10(past + 1.0)
    return min(max(found, 0.0), s.MAX_EVIDENCE)


def _tail_learn(state: State, channel: int, distance: float) -> None:
    kept, numbers = state["tail_values"][channel], state["tail_numbers"][channel]
    seen = int(state["tail_seen"][channel])
    if seen >= s.WINDOW_POINTS:
        old = np.uint32((seen - s.WINDOW_POINTS) % 2**32)
        found = np.flatnonzero(numbers[: state["tail_kept"][channel]] == old)
        if len(found):
            _tail_forget(state, channel, int(found[0]))
    if state["tail_kept"][channel] < s.FEW_KEPT:
        state["tail_floor"][channel] *= s.FLOOR_DECAY
    rounded = np.float32(distance)
    if rounded >= state["tail_floor"][channel]:
        if state["tail_kept"][channel] == s.KEPT:
            state["tail_floor"][channel] = kept[0]
            _tail_forget(state, channel, 0)
        count = int(state["tail_kept"][channel])
        state["tail_kept"][channel] += 1
        place = int(kept[:count].searchsorted(rounded))
        kept[place + 1 : count + 1] = kept[place:count].copy()
        numbers[place + 1 : count + 1] = numbers[place:count].copy()
        kept[place], numbers[place] = rounded, seen % 2**32
    state["tail_seen"][channel] = seen + 1


def _tail_forget(state: State, channel: int, place: int) -> None:
    state["tail_kept"][channel] -= 1
    count = int(state["tail_kept"][channel])
    for each in (state["tail_values"][channel], state["tail_numbers"][channel]):
        each[place:count] = each[place + 1 : count + 1].copy()
