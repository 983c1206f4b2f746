"""Equipment history as values: what units of one kind read over time, and how each of them ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Unit:
    """One engine, disk, node or accelerator from its first reading to its last.

    Legend: T samples, S signals, C settings.

    Args:
        name: unique within a history.
        times_T: increasing, in the user's unit of time; any origin.
        signals_TS: readings; NaN: missing.
        settings_TC: operating conditions (load, altitude, ...), never missing; C may be 0.
        failed: it failed at its last time; False: it was still working then (censored).

    Raises:
        InputError: shapes disagree, times do not increase, or a time or setting is not finite.
    """

    name: str
    times_T: Floats
    signals_TS: Floats
    settings_TC: Floats
    failed: bool

    def __post_init__(self) -> None:
        num = len(self.times_T)
        if num == 0 or self.signals_TS.shape[:1] != (num,) or self.settings_TC.shape[:1] != (num,):
            raise InputError(f"unit {self.name}: times, signals and settings differ in length, or are empty")
        if not np.isfinite(self.times_T).all() or (np.diff(self.times_T) <= 0).any():
            raise InputError(
                f"unit {self.name}: times must be finite and increase from sample to sample",
                hint="sort each unit's rows by time and drop duplicates",
            )
        if not np.isfinite(self.settings_TC).all():
            raise InputError(f"unit {self.name}: a setting is missing or not finite")
        if np.isinf(self.signals_TS).any():
            raise InputError(f"unit {self.name}: a signal is infinite", hint="write a missing value instead")

    @property
    def num_samples(self) -> int:
        """T."""
        return len(self.times_T)

    def remaining_T(self) -> Floats:
        """Time left until the end, for each sample; of a censored unit a lower bound."""
        return np.asarray(self.times_T[-1] - self.times_T)

    def until(self, num_samples: int) -> Unit:
        """The unit as it was known after its first ``num_samples``: not failed yet."""
        return Unit(
            name=self.name,
            times_T=self.times_T[:num_samples],
            signals_TS=self.signals_TS[:num_samples],
            settings_TC=self.settings_TC[:num_samples],
            failed=self.failed and num_samples >= self.num_samples,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class History:
    """Units of one kind with the same signals and settings.

    Raises:
        InputError: two units share a name, or one has another number of columns than there are names.
    """

    units: tuple[Unit, ...]
    signal_names: tuple[str, ...]
    setting_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len({unit.name for unit in self.units}) < len(self.units):
            raise InputError("two units of the history share a name")
        if not self.signal_names:
            raise InputError(
                "the history has no signal", hint="every unit needs at least one column of readings"
            )
        for unit in self.units:
            if unit.signals_TS.shape[1:] != (len(self.signal_names),):
                raise InputError(f"unit {unit.name}: expected {len(self.signal_names)} signals")
            if unit.settings_TC.shape[1:] != (len(self.setting_names),):
                raise InputError(f"unit {unit.name}: expected {len(self.setting_names)} settings")

    def failed(self) -> tuple[Unit, ...]:
        """The units whose failure was seen."""
        return tuple(unit for unit in self.units if unit.failed)

    def only(self, units: Sequence[Unit]) -> History:
        """The same columns with these units."""
        return History(units=tuple(units), signal_names=self.signal_names, setting_names=self.setting_names)


def history_from_columns(
    unit: Sequence[str],
    time: Floats,
    signals: Mapping[str, Floats],
    *,
    settings: Mapping[str, Floats] | None = None,
    failed: Mapping[str, bool] | None = None,
) -> History:
    """A history from columns of equal length, rows of a unit in the order of time.

    Args:
        unit: each row's unit.
        time: each row's time.
        signals, settings: columns by name.
        failed: by unit; a unit that is not named is censored.

    Raises:
        InputError: as :class:`Unit` and :class:`History`.

    >>> made = history_from_columns(["a", "a", "b"], np.array([0.0, 1, 0]), {"heat": np.array([1.0, 2, 3])},
    ...                             failed={"a": True})
    >>> [(each.name, each.num_samples, each.failed) for each in made.units]
    [('a', 2, True), ('b', 1, False)]
    """
    settings, failed = settings or {}, failed or {}
    num = len(unit)
    if len(time) != num or any(len(column) != num for column in (*signals.values(), *settings.values())):
        raise InputError("the columns of a history differ in length")
    signals_NS = np.column_stack(
        [np.asarray(column, float) for column in signals.values()] or [np.empty((num, 0))]
    )
    settings_NC = np.column_stack(
        [np.asarray(column, float) for column in settings.values()] or [np.empty((num, 0))]
    )
    rows: dict[str, list[int]] = {}
    for at, name in enumerate(unit):
        rows.setdefault(str(name), []).append(at)
    units = tuple(
        Unit(
            name=name,
            times_T=np.asarray(time, float)[of],
            signals_TS=signals_NS[of],
            settings_TC=settings_NC[of],
            failed=failed.get(name, False),
        )
        for name, of in rows.items()
    )
    return History(units=units, signal_names=tuple(signals), setting_names=tuple(settings))
