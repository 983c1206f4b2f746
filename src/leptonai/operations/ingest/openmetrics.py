"""Reading what a scrape returns: OpenMetrics 1.0 or Prometheus text 0.0.4.

Exemplars are checked for form only as far as finding their end, and left out. Errors name the line.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from leptonai.core.errors import InputError
from leptonai.operations.ingest.exposition import KINDS, Family, Point

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*\"((?:[^\"\\\n]|\\.)*)\"[ \t]*")
_ESCAPE = re.compile(r"\\(.)")
_ESCAPED = {"n": "\n", '"': '"', "\\": "\\"}
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?:inf|infinity)|nan", re.IGNORECASE)
_SUFFIXES = {
    "counter": ("_total", "_created"),
    "histogram": ("_bucket", "_count", "_sum", "_created"),
    "gaugehistogram": ("_bucket", "_gcount", "_gsum"),
    "summary": ("", "_count", "_sum", "_created"),
    "info": ("_info",),
}
_LONGEST_TIME_MS = 1 << 62


@dataclass(slots=True)
class _Open:
    """A family that is still being read."""

    name: str
    kind: str = "unknown"
    help: str = ""
    unit: str = ""
    points: list[Point] = field(default_factory=list)


def is_openmetrics(content_type: str) -> bool:
    """Whether a Content-Type says OpenMetrics; anything else is read as 0.0.4.

    >>> is_openmetrics("application/openmetrics-text; version=1.0.0"), is_openmetrics("text/plain")
    (True, False)
    """
    return content_type.split(";")[0].strip().lower() == "application/openmetrics-text"


def parse(text: str, *, openmetrics: bool) -> list[Family]:
    """The families of a page, in its order.

    Args:
        text: the page.
        openmetrics: OpenMetrics (times in seconds, ``# EOF`` required, a family in one piece); else 0.0.4.

    Raises:
        InputError: a line is not valid, or the page was cut off.

    >>> (found,) = parse('# TYPE a counter\\na_total{b="c"} 1 2.5\\n# EOF\\n', openmetrics=True)
    >>> found.kind, found.points[0].time_ms
    ('counter', 2500)
    """
    reader = _Reader(openmetrics)
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    for number, line in enumerate(lines, start=1):
        if reader.ended:
            raise InputError(f"line {number}: text after # EOF")
        try:
            reader.read(line if openmetrics else line.strip(" \t\r"))
        except InputError as error:
            raise InputError(f"line {number}: {error.message}", hint=error.hint) from None
    if openmetrics and not reader.ended:
        raise InputError("the page does not end in # EOF: it was cut off")
    return reader.families()


class _Reader:
    def __init__(self, openmetrics: bool) -> None:
        self.ended = False
        self._openmetrics = openmetrics
        self._families: dict[str, _Open] = {}
        self._owner: dict[str, _Open] = {}
        self._typed: set[str] = set()

    def families(self) -> list[Family]:
        return [
            Family(
                name=each.name, kind=each.kind, help=each.help, points=tuple(each.points),
                unit=each.unit if each.name.endswith(f"_{each.unit}") else "",
            )
            for each in self._families.values()
        ]  # fmt: skip

    def read(self, line: str) -> None:
        if line.startswith("#"):
            self._comment(line)
        elif line:
            self._sample(line)
        elif self._openmetrics:
            raise InputError("an empty line")

    def _comment(self, line: str) -> None:
        if line == "# EOF":
            self.ended = self._openmetrics
            return
        words = line.split(" ", 3) if self._openmetrics else line.split(None, 3)
        if len(words) < 3 or words[1] not in ("HELP", "TYPE", "UNIT"):
            if self._openmetrics:
                raise InputError("expected HELP, TYPE, UNIT or EOF after #")
            return
        rest = words[3] if len(words) > 3 else ""
        if _NAME.fullmatch(words[2]) is None:
            raise InputError(f"{words[2][:80]!r} is not a metric's name")
        each = self._family(words[2])
        if words[1] == "HELP":
            each.help = _unescape(rest)
        elif words[1] == "UNIT":
            each.unit = rest
        else:
            self._type(each, rest.strip())

    def _type(self, each: _Open, kind: str) -> None:
        kind = "unknown" if kind == "untyped" else kind
        if kind not in KINDS:
            raise InputError(f"unknown type {kind[:40]!r}")
        if each.name in self._typed and each.kind != kind:
            raise InputError(f"{each.name} changes its type from {each.kind} to {kind} within a page")
        if each.points:
            raise InputError(f"the type of {each.name} comes after its samples")
        self._typed.add(each.name)
        each.kind = kind
        for suffix in _SUFFIXES.get(kind, ()):
            self._owner[each.name + suffix] = each

    def _family(self, name: str) -> _Open:
        if name not in self._families:
            self._families[name] = self._owner[name] = _Open(name)
        return self._families[name]

    def _sample(self, line: str) -> None:
        match = _NAME.match(line)
        if match is None:
            raise InputError("expected a metric's name")
        name, at = match.group(), match.end()
        at = at if self._openmetrics else _skip(line, at)
        labels: tuple[tuple[str, str], ...] = ()
        if line[at : at + 1] == "{":
            labels, at = _labels(line, at + 1)
        rest = line[at:].split("#", 1)[0] if self._openmetrics else line[at:]
        words = rest.split()
        if not rest[:1].isspace() or not 1 <= len(words) <= 2:
            raise InputError(f"{name}: expected a value and perhaps a time")
        owner = self._owner.get(name) or self._family(name)
        time_ms = _time_ms(words[1], seconds=self._openmetrics) if len(words) == 2 else None
        owner.points.append(Point(name, labels, _number(words[0]), time_ms))


def _skip(line: str, at: int) -> int:
    while at < len(line) and line[at] in " \t" and line[at:].lstrip(" \t").startswith("{"):
        at += 1
    return at


def _labels(line: str, at: int) -> tuple[tuple[tuple[str, str], ...], int]:
    found: dict[str, str] = {}
    while True:
        match = _LABEL.match(line, at)
        if match is None:
            break
        name, at = match.group(1), match.end()
        if name in found or name == "__name__":
            raise InputError(f"the label {name!r} comes twice or is not allowed")
        found[name] = _unescape(match.group(2))
        if line[at : at + 1] != ",":
            break
        at += 1
    end = re.compile(r"[ \t]*}").match(line, at)
    if end is None:
        raise InputError("the labels are broken")
    return tuple(sorted(found.items())), end.end()


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: _ESCAPED.get(match.group(1), match.group()), text)


def _number(word: str) -> float:
    if _NUMBER.fullmatch(word) is None:
        raise InputError(f"{word[:40]!r} is not a number")
    return float(word)


def _time_ms(word: str, *, seconds: bool) -> int:
    value = _number(word) * (1000 if seconds else 1)
    if not math.isfinite(value) or abs(value) > _LONGEST_TIME_MS:
        raise InputError(f"{word[:40]!r} is not a time")
    return round(value)
