"""Lines of logs that are pushed to us: one JSON object a line, read with bounds; bad lines do not hold up good ones."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_LINE_BYTES = 64 << 10
"""Of one line: eight times the longest message that the kernel keeps."""
MAX_LABELS = 64
TEXTS = ("origin", "severity", "message")

TakeLogs = Callable[[Sequence["LogLine"]], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One message of a machine or a program.

    Args:
        at_seconds: wall time, seconds since 1970.
        origin: what said it, such as ``kernel``.
        severity: as the sender calls it.
        message: the text.
        labels: such as ``node``.
    """

    at_seconds: float
    origin: str
    severity: str
    message: str
    labels: Mapping[str, str] = field(default_factory=dict)


def read_lines(body: bytes, *, max_lines: int) -> tuple[list[LogLine], list[str]]:
    """The lines of a body, and one sentence about each line that is none; empty lines are left out.

    >>> body = b'{"at_seconds": 5, "origin": "kernel", "severity": "err", "message": "I/O error"}\\nx\\n'
    >>> lines, problems = read_lines(body, max_lines=10)
    >>> lines[0].message, problems
    ('I/O error', ['line 2: not a JSON object'])
    """
    lines: list[LogLine] = []
    problems: list[str] = []
    for number, text in enumerate(body.split(b"\n"), start=1):
        if not text.strip():
            continue
        if len(lines) >= max_lines:
            problems.append(f"line {number}: a request may have {max_lines} lines")
            continue
        found = _read(text)
        if isinstance(found, str):
            problems.append(f"line {number}: {found}")
        else:
            lines.append(found)
    return lines, problems


def _read(text: bytes) -> LogLine | str:
    if len(text) > MAX_LINE_BYTES:
        return f"longer than {MAX_LINE_BYTES} bytes"
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        return "not a JSON object"
    at_seconds, labels = found.get("at_seconds"), found.get("labels", {})
    if isinstance(at_seconds, bool) or not isinstance(at_seconds, int | float) or not _is_finite(at_seconds):
        return "at_seconds must be seconds since 1970"
    if not isinstance(found.get("message"), str):
        return "message is missing"
    texts = {name: found.get(name, "") for name in TEXTS}
    if not all(isinstance(each, str) for each in texts.values()):
        return "origin, severity and message must be texts"
    if not isinstance(labels, dict) or len(labels) > MAX_LABELS:
        return f"labels must be an object of at most {MAX_LABELS}"
    if not all(isinstance(each, str) for each in labels.values()):
        return "labels must be texts"
    return LogLine(
        at_seconds=float(at_seconds),
        labels={_whole(name): _whole(value) for name, value in labels.items()},
        **{name: _whole(each) for name, each in texts.items()},
    )


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def _whole(text: str) -> str:
    """Without halves of surrogate pairs, which JSON may hold and no file or database can."""
    return text.encode("utf-8", "replace").decode()
