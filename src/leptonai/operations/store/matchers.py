"""Which series are meant: conditions on labels, with the meaning that Prometheus gives them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from leptonai.core.errors import InputError
from leptonai.operations.series import Series

Op = Literal["=", "!=", "=~", "!~"]
OPS: tuple[Op, ...] = ("=", "!=", "=~", "!~")
MAX_PATTERN_CHARACTERS = 1024
"""Of a regular expression: longer ones are lists, and belong in several queries."""


@dataclass(frozen=True, slots=True)
class Matcher:
    """One condition on one label; a label that a series lacks counts as empty.

    Regular expressions are Python's and must match the whole value.

    Raises:
        InputError: the operator is unknown, or the expression is too long or not one.

    >>> Matcher("mode", "=~", "id.*").matches({"mode": "idle"}), Matcher("mode", "=", "").matches({})
    (True, True)
    """

    name: str
    op: Op
    value: str
    _pattern: re.Pattern[str] | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise InputError(f"unknown matcher {self.op!r}", hint=f"one of {', '.join(OPS)}")
        if self.op in ("=", "!="):
            return
        if len(self.value) > MAX_PATTERN_CHARACTERS:
            raise InputError(f"a regular expression may have {MAX_PATTERN_CHARACTERS} characters")
        try:
            # Prometheus lets the dot match a line's end, and so must a whole value with one in it.
            object.__setattr__(self, "_pattern", re.compile(self.value, re.DOTALL))
        except (re.error, RecursionError, OverflowError) as error:
            raise InputError(f"{self.value!r} is not a regular expression: {error}") from error

    def accepts(self, value: str) -> bool:
        """Whether a value of the label (empty: it has none) fulfils the condition."""
        if self._pattern is None:
            return (value == self.value) == (self.op == "=")
        return (self._pattern.fullmatch(value) is not None) == (self.op == "=~")

    def matches(self, labels: Series | dict[str, str]) -> bool:
        """Whether the labels fulfil the condition."""
        value = labels.get(self.name) if isinstance(labels, Series) else labels.get(self.name, "")
        return self.accepts(value)


def all_match(matchers: Sequence[Matcher], series: Series) -> bool:
    """Whether a series fulfils every condition."""
    return all(matcher.matches(series) for matcher in matchers)
