"""PromQL as tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass

from leptonai.core.errors import InputError

MAX_CHARACTERS = 8192
"""Of a query; dashboards stay far below."""

_TOKEN = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)
      | (?P<duration>(?:\d+(?:ms|[smhdwy]))+(?![a-zA-Z0-9_]))
      | (?P<number>0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![a-zA-Z0-9_.]))
      | (?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)
      | (?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`[^`]*`)
      | (?P<op>=~|!~|!=|==|<=|>=|[-+*/%^<>=(){}\[\],:@])""",
    re.VERBOSE,
)
_UNIT_MS = {
    "ms": 1,
    "s": 1000,
    "m": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "w": 604_800_000,
    "y": 31_536_000_000,
}
_PART = re.compile(r"(\d+)(ms|[smhdwy])")
_ESCAPE = re.compile(
    r"\\(?:([abfnrtv\\\"'])|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})|(.))", re.S
)
_ESCAPED = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_LARGEST_CODE_POINT = 0x10FFFF
_LONGEST_DURATION_MS = 1000 * _UNIT_MS["y"]


@dataclass(frozen=True, slots=True)
class Token:
    """``kind``: duration, number, name, text, op or end; ``at``: characters before it."""

    kind: str
    text: str
    at: int


def tokens(query: str) -> list[Token]:
    """The tokens of a query, closed by one of kind ``end``.

    Raises:
        InputError: a character belongs to no token.

    >>> [token.text for token in tokens("rate(a[5m])")]
    ['rate', '(', 'a', '[', '5m', ']', ')', '']
    """
    if len(query) > MAX_CHARACTERS:
        raise InputError(f"a query may have {MAX_CHARACTERS} characters")
    found, at = [], 0
    while at < len(query):
        match = _TOKEN.match(query, at)
        if match is None:
            raise InputError(f"at character {at}: {query[at : at + 10]!r} is not PromQL")
        if match.lastgroup != "space":
            found.append(Token(str(match.lastgroup), match.group(), at))
        at = match.end()
    return [*found, Token("end", "", at)]


def duration_ms(text: str) -> int:
    """Of a duration such as ``1h30m``.

    Raises:
        InputError: it is none.

    >>> duration_ms("1h30m")
    5400000
    """
    if re.fullmatch(r"(?:\d+(?:ms|[smhdwy]))+", text, re.ASCII) is None or len(text) > 40:
        raise InputError(f"{text[:40]!r} is not a duration", hint="such as 30s, 5m or 1h30m")
    total = sum(int(count) * _UNIT_MS[unit] for count, unit in _PART.findall(text))
    if total > _LONGEST_DURATION_MS:
        raise InputError(f"{text[:40]!r} is too long")
    return total


def unquote(text: str) -> str:
    """What a string literal stands for.

    Raises:
        InputError: an escape is not one.
    """
    inner = text[1:-1]
    if text[0] == "`":
        return inner

    def plain(match: re.Match[str]) -> str:
        simple, byte, short, long, octal, other = match.groups()
        if other is not None:
            raise InputError(f"unknown escape \\{other} in a string")
        if simple is not None:
            return _ESCAPED.get(simple, simple)
        code = int(octal, 8) if octal is not None else int(byte or short or long, 16)
        if code > _LARGEST_CODE_POINT:
            raise InputError("an escape in a string is no character")
        return chr(code)

    return _ESCAPE.sub(plain, inner)
