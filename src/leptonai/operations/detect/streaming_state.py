"""What the streaming detector remembers of a series, as one flat record, and the constants of its channels.

The record has the memory layout of ``State`` in ``streaming.c``; the constants are written there a second time. The
kernel and the reference work on the same bytes, which are also what a restart keeps. 84 KB, whatever the series.
"""

from __future__ import annotations

import numpy as np

CHANNELS = ("shape", "context", "day", "week", "level", "shift", "spread")
"""In the order of the record: distance from the nearest remembered short shape and longer context; from the usual
level at this time of the day and of the week; the last eight residuals of the day together; the last hundred points
against the hundred before; the usual size of a move now against that before."""
REASONS = ("shape", "context", "seasonal", "seasonal", "level", "level", "spread")
"""What a person is told when a channel weighs most."""
SHAPE, CONTEXT, DAY, WEEK, LEVEL, SHIFT, SPREAD = range(7)

WINDOW_POINTS = 5000
"""A distance is ranked among so many of the channel's latest: fewer (500, 1000, 2000) know too little of the tail."""
KEPT = 1024
"""Of them the largest are kept, which is all that a tail needs: a fifth of the memory, the same scores."""
FEW_KEPT = 300
"""With fewer kept (the series became quieter) smaller distances are let in again; three times the tail's share."""
FLOOR_DECAY = 0.99
"""How fast, a point: the floor halves in 70 points."""
MIN_POINTS = 20
"""A channel is silent until it has so many distances to rank among."""
TAIL_SHARE = 0.02
"""Beyond this share of the past, ranks give way to an exponential tail: half or twice as much did worse."""
MIN_TAIL = 4.0
"""A tail's scale is taken from at least so many excesses."""
RECORD_STEEPNESS = 3.0
"""The shift of a hundred points moves slowly, so its ranks are one long run: only how far a record goes past the old
one, in units of that one's height over the middle, is evidence; three e-folds a unit."""
MAX_EVIDENCE = 30.0
"""In ten-folds: beyond it only the size of numbers speaks."""
TIE_SHARE = 1e-6
"""Distances closer than this are equal: float32 keeps seven digits."""

NUM_BOOKS = 2
SCALES = ((1, 3, 9), (1, 4, 16, 64))
"""A shape and a context are the means of the last so many points; other sets of two or three did the same."""
MAX_SCALES = 4
NUM_PROTOTYPES = 256
NEW_RATIO = 3.0
"""A point farther from all prototypes than so many usual distances becomes one; 2 to 4 did the same."""
USUAL_RATE = 0.002
MOVE_RATE = 0.02
"""Part of the way that the nearest prototype goes towards a point that is near."""
AGEING_POINTS = 5000
"""After so many points the uses of prototypes are halved, so that what is no longer seen can be replaced."""

RECENT = 256
"""Points kept: a power of two that holds both halves of the shift."""
SHIFT_POINTS = 100
DAY_SLOTS, DAY_SLOT_SECONDS = 48, 1800.0
DAY_RATE, DAY_VISIT_RATE = 0.02, 0.12
"""Of a slot's running mean, a point; a visit of many points (one a second, say) together at most the second."""
WEEK_SLOTS, WEEK_SLOT_SECONDS = 168, 3600.0
WEEK_RATE, WEEK_VISIT_RATE = 0.05, 0.6
MIN_VISITS = 2
"""Points that a slot has seen before its residual means something."""
RESIDUALS = 8
MOVES = 12
SPREAD_RATE = 0.005
WINDOW_WEIGHT = 0.85
"""Of the channels over windows (level, shift, spread): their noise is correlated, so their tails are less sure."""

LARGEST_VALUE = 1e37
"""Values are cut here, so that sums of them and float32 hold them."""
LARGEST_DECAY = 0.999
ROUNDING_SHARE = 1.4e-14
"""64 units of the last place of the largest recent value: a distance below is rounding, and counts as none."""
INTERVAL_RATE = 0.05
GAP_INTERVALS = 16.0
"""After a hole of so many usual intervals, windows begin anew: points on its two sides are no neighbours."""

_F8, _I8 = np.float64, np.int64
STATE = np.dtype(
    [
        ("anchor", _F8), ("largest", _F8), ("last_seconds", _F8), ("interval_seconds", _F8), ("usual_move", _F8),
        ("num_points", _I8), ("num_together", _I8), ("num_moves", _I8), ("num_spreads", _I8),
        ("num_residuals", _I8),
        ("recent", _F8, (RECENT,)), ("residuals", _F8, (RESIDUALS,)), ("moves", _F8, (MOVES,)),
        ("day_levels", _F8, (DAY_SLOTS,)), ("week_levels", _F8, (WEEK_SLOTS,)),
        ("day_visits", _I8, (DAY_SLOTS,)), ("week_visits", _I8, (WEEK_SLOTS,)),
        ("prototypes", _F8, (NUM_BOOKS, MAX_SCALES, NUM_PROTOTYPES)),
        ("usual_distance", _F8, (NUM_BOOKS,)), ("num_distances", _I8, (NUM_BOOKS,)),
        ("num_prototypes", _I8, (NUM_BOOKS,)), ("uses", _I8, (NUM_BOOKS, NUM_PROTOTYPES)),
        ("tail_seen", _I8, (len(CHANNELS),)), ("tail_kept", _I8, (len(CHANNELS),)),
        ("tail_floor", _F8, (len(CHANNELS),)),
        ("tail_values", np.float32, (len(CHANNELS), KEPT)), ("tail_numbers", np.uint32, (len(CHANNELS), KEPT)),
    ]
)  # fmt: skip
"""All zeros is a detector that has seen nothing."""
