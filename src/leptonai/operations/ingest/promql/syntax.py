"""PromQL's expressions as values."""

from __future__ import annotations

from dataclasses import dataclass

from leptonai.core.errors import InputError
from leptonai.operations.store import Matcher


class Unsupported(InputError):
    """PromQL that Prometheus understands and we do not; names what."""


@dataclass(frozen=True, slots=True)
class Number:
    """A scalar that is written out."""

    value: float


@dataclass(frozen=True, slots=True)
class Text:
    """A string literal; only an argument."""

    value: str


@dataclass(frozen=True, slots=True)
class Selector:
    """Series by matchers, ``offset_ms`` back; ``range_ms`` > 0: their samples over that time, else the latest."""

    matchers: tuple[Matcher, ...]
    range_ms: int = 0
    offset_ms: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """A function of arguments."""

    name: str
    arguments: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Aggregate:
    """An aggregation over series; ``parameter`` is topk's number."""

    name: str
    inner: Expression
    labels: tuple[str, ...] = ()
    without: bool = False
    parameter: Expression | None = None


@dataclass(frozen=True, slots=True)
class Binary:
    """An operator between two sides; ``on`` None: match all labels (but those in ``ignoring``)."""

    op: str
    left: Expression
    right: Expression
    returns_bool: bool = False
    on: tuple[str, ...] | None = None
    ignoring: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Negated:
    """Unary minus."""

    inner: Expression


Expression = Number | Text | Selector | Call | Aggregate | Binary | Negated
