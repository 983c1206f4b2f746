"""Regular expressions of strangers: those that could take for ever are refused before they run.

Prometheus' engine (RE2) is linear in its text; Python's tries alternatives one after the other, which takes exponential
time where what is repeated can itself be matched in several ways, such as ``(a+)+b``, and nothing else runs meanwhile.
"""

from __future__ import annotations

from leptonai.operations.ingest.promql.syntax import Unsupported
from leptonai.operations.store import Matcher
from leptonai.operations.store.matchers import OPS

_MOST_REPEATS_IN_A_ROW = 4
"""Of ``*``, ``+`` and ``{`` in one alternative: the time grows with the text's length to that power."""


def safe_matcher(name: str, op: str, value: str) -> Matcher:
    """A matcher whose time is bounded.

    Raises:
        InputError: the expression is none, or could take for ever.

    >>> safe_matcher("job", "=~", "a.*|b.+").matches({"job": "bc"})
    True
    """
    kind = next(each for each in OPS if each == op)
    if kind in ("=~", "!~"):
        check_pattern(value)
    return Matcher(name, kind, value)


def check_pattern(pattern: str) -> None:
    """Refuse an expression that repeats a group with repeats or alternatives in it, or repeats very often.

    Raises:
        Unsupported: it could take for ever.

    >>> check_pattern("(?:foo|bar)-[0-9+*]+(x*)?")
    """
    inside = [False]  # for each open group: whether it can match in several ways
    repeats = [0]  # and how many repeats its present alternative has
    at, closed = 0, False
    while at < len(pattern):
        char, width = pattern[at], 1
        if char == "\\":
            width = 2
        elif char == "[":
            width = _set_width(pattern, at)
        elif char == "(":
            inside.append(False)
            repeats.append(0)
            width = 2 if pattern[at + 1 : at + 2] == "?" else 1
        elif char == ")" and len(inside) > 1:
            was_open, num_repeats = inside.pop(), repeats.pop()
            inside[-1] |= was_open
            repeats[-1] += num_repeats
            closed = was_open
            at += 1
            continue
        elif char == "|":
            inside[-1], repeats[-1] = True, 0
        elif char in "*+{?":
            if closed and char != "?":
                raise Unsupported(
                    "a regular expression that repeats repeats or alternatives is not supported"
                )
            inside[-1] = True
            repeats[-1] += char != "?"
        if repeats[-1] > _MOST_REPEATS_IN_A_ROW:
            raise Unsupported(f"more than {_MOST_REPEATS_IN_A_ROW} repeats in a row are not supported")
        closed = False
        at += width


def _set_width(pattern: str, at: int) -> int:
    """How long a set ``[...]`` is; a ``]`` that comes first belongs to it."""
    end = at + 1
    end += pattern[end : end + 1] == "^"
    end += pattern[end : end + 1] == "]"
    while end < len(pattern) and pattern[end] != "]":
        end += 2 if pattern[end] == "\\" else 1
    return end + 1 - at
