"""The journal of a run: its events, one strict JSON object a line, safe against a crash at any instant.

Numbers that JSON lacks are the words ``"NaN"``, ``"Infinity"`` and ``"-Infinity"`` and read back as numbers.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import threading
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from leptonai.core.clock import Clock, SystemClock
from leptonai.core.disk import sync_directory
from leptonai.core.errors import Fault, InputError
from leptonai.core.events import EVENT_TYPES, Event, event_from_json, event_to_json

SYNC_SECONDS = 1.0
_WORDS: Mapping[str, float] = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_REAL_CLOCK = SystemClock()


class Journal:
    """Appends events to one file; safe to use from several threads, by one journal at a time.

    Every event is handed to the operating system at once, so it survives the death of this process. It is
    forced to the disk, to survive the death of the machine too, when it is appended as ``durable``, when more
    than a second has passed since the last time, and on close. Opening removes a last line torn by a crash.

    Args:
        path: the file, created if it is missing.
        clock: tells when a second has passed.

    Raises:
        InputError: the file cannot be opened, or another journal has it open.
        Fault: an append did not reach the disk; the file then ends with the event before.
    """

    def __init__(self, path: Path, *, clock: Clock = _REAL_CLOCK) -> None:
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._synced_at_seconds = clock.monotonic_seconds()
        self._file: int | None = _open(path)
        try:
            self._size_bytes = _repair(self._file)
        except BaseException:
            self.close()
            raise

    def append(self, event: Event, *, durable: bool = False) -> None:
        """Add one event; with ``durable`` it is on the disk when this returns."""
        line = event_to_line(event)
        with self._lock:
            if self._file is None:
                raise ValueError("the journal is closed")
            now = self._clock.monotonic_seconds()
            try:
                _write_all(self._file, line)
                self._size_bytes += len(line)
                if durable or now - self._synced_at_seconds > SYNC_SECONDS:
                    os.fsync(self._file)
                    self._synced_at_seconds = now
            except OSError as error:
                # Half a line must not stay: the next event would be glued to it.
                os.ftruncate(self._file, self._size_bytes)
                raise Fault(f"{self._path}: could not be written: {error.strerror}") from error

    def close(self) -> None:
        """Force all to the disk and let go of the file; again is allowed."""
        with self._lock:
            if self._file is not None:
                file, self._file = self._file, None
                try:
                    os.fsync(file)
                finally:
                    os.close(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_journal(path: Path) -> Iterator[Event]:
    """The events of a journal, oldest first; a last line without its end, torn by a crash, is left out.

    Raises:
        InputError: the file cannot be read, or a line is damaged (with its number).
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                try:
                    yield event_from_line(line)
                except InputError as error:
                    raise InputError(f"{path}:{number}: {error.message}", hint=error.hint) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def event_to_line(event: Event) -> bytes:
    r"""One event as a line of strict JSON in ASCII.

    >>> from leptonai.core.events import Notice
    >>> event_to_line(Notice(at_seconds=1.0, message="hello"))
    b'{"kind":"notice","at_seconds":1.0,"message":"hello"}\n'
    """
    values = _with_words(event_to_json(event))
    return json.dumps(values, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"


def event_from_line(line: bytes) -> Event:
    """Inverse of :func:`event_to_line`.

    Raises:
        InputError: the line is not JSON or not a known event.
    """
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError("the line is not JSON") from error
    if not isinstance(values, dict):
        raise InputError("the line is not a JSON object")
    for name in _number_fields(str(values.get("kind"))) & values.keys():
        values[name] = _without_words(values[name])
    return event_from_json(values)


@cache
def _number_fields(kind: str) -> frozenset[str]:
    """Fields that hold a float, or floats by name; only there a word stands for a number."""
    hints = typing.get_type_hints(EVENT_TYPES[kind]) if kind in EVENT_TYPES else {}
    return frozenset(name for name, hint in hints.items() if hint is float or float in typing.get_args(hint))


def _with_words(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _with_words(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return [_with_words(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _without_words(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_words(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_words(item) for item in value]
    return _WORDS.get(value, value) if isinstance(value, str) else value


def _open(path: Path) -> int:
    try:
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        sync_directory(path.parent)
    except BlockingIOError:
        os.close(file)
        raise InputError(
            f"{path}: another run is writing it", hint="wait for it, or use another run directory"
        ) from None
    except BaseException:
        os.close(file)
        raise
    return file


def _repair(file: int) -> int:
    """Cut a torn last line; returns the size that is left."""
    size = end = os.fstat(file).st_size
    while end > 0:
        start = max(0, end - 65536)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(file, end)
        os.fsync(file)
    return end


def _write_all(file: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]
