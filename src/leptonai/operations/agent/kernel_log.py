"""Kernel messages as records for the fault catalogue: from ``/dev/kmsg``, else from journalctl.

A saved cursor (boot and sequence number) lets the next agent go on where the last one stopped, so that what the kernel
said before the agent came, or while it was away, is not lost and nothing is told twice.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from leptonai.core.clock import Clock, SystemClock
from leptonai.operations.agent.source import Absent, LogRecord, read_word
from leptonai.operations.alarms import Severity

MAX_RECORDS = 500
"""At most so many in one go: a storm of messages must not hold up the samples; the rest waits in the kernel."""
_RECORD_BYTES = 8192  # CONSOLE_EXT_LOG_MAX of the kernel: no record is longer
_MICROSECONDS_PER_SECOND = 1e6
_KERNEL = 0
_SEVERITIES: tuple[Severity, ...] = (
    # emerg, alert, crit, err, warning, notice, info, debug
    "fatal", "critical", "critical", "warning", "warning", "info", "info", "info",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelMessage:
    """One record of ``/dev/kmsg``; ``since_boot_seconds`` by the kernel's own clock."""

    sequence: int
    level: int
    facility: int
    since_boot_seconds: float
    text: str


def parse_kmsg(record: str) -> KernelMessage | None:
    """One record; None: it is none (a torn or foreign line).

    >>> parse_kmsg("3,1234,5000000,-;EXT4-fs error (device sda1)\\n SUBSYSTEM=block\\n").text
    'EXT4-fs error (device sda1)'
    """
    head, mark, text = record.partition(";")
    fields = head.split(",")
    if not mark or len(fields) < 3:
        return None
    try:
        priority, sequence, microseconds = (int(field) for field in fields[:3])
    except ValueError:
        return None
    return KernelMessage(
        sequence=sequence,
        level=priority & 7,
        facility=priority >> 3,
        since_boot_seconds=microseconds / _MICROSECONDS_PER_SECOND,
        text=text.partition("\n")[0],
    )


def kernel_record(message: KernelMessage, *, booted_at_seconds: float) -> LogRecord:
    """The message as a log record; root can write messages too, and the label tells those from the kernel's own."""
    return LogRecord(
        at_seconds=booted_at_seconds + message.since_boot_seconds,
        origin="kernel",
        severity=_SEVERITIES[message.level],
        message=message.text,
        labels=(("facility", "kern" if message.facility == _KERNEL else "user"),),
    )


def parse_journal(line: str) -> LogRecord | None:
    """One line of ``journalctl -k -o json``; None: it is none, or holds no text.

    >>> parse_journal('{"__REALTIME_TIMESTAMP": "1000000", "PRIORITY": "3", "MESSAGE": "I/O error"}').severity
    'warning'
    """
    try:
        entry = json.loads(line)
        text, level = entry["MESSAGE"], int(entry.get("PRIORITY", 6))
        at_seconds = int(entry["__REALTIME_TIMESTAMP"]) / _MICROSECONDS_PER_SECOND
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not isinstance(text, str) or not 0 <= level < len(_SEVERITIES):
        return None
    labels = (("facility", "kern"),)
    return LogRecord(
        at_seconds=at_seconds, origin="kernel", severity=_SEVERITIES[level], message=text, labels=labels
    )


class LogSource(Protocol):
    """Something that tells messages."""

    name: str

    def records(self) -> list[LogRecord]:
        """What is new since the last call, oldest first."""
        ...

    def close(self) -> None:
        """Let go of files and processes; again is allowed."""
        ...


class KmsgSource:
    """Reads ``/dev/kmsg`` without waiting.

    Args:
        path: the device, or a pipe in tests that gives one record a read.
        cursor: a file that holds ``BOOT SEQUENCE`` of the last record told; None: start with the next message.
        boot_id: of this boot; another one in the cursor means that all of this boot's messages are new.

    Raises:
        OSError: the device cannot be opened.
    """

    name = "kernel messages"

    def __init__(self, path: Path, *, cursor: Path | None, boot_id: str, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._cursor = cursor
        self._boot_id = boot_id
        self._told = -1
        self.num_missed = 0
        self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if cursor is None:
            with contextlib.suppress(OSError):
                os.lseek(self._file, 0, os.SEEK_END)
        else:
            boot, _, sequence = read_word(cursor).partition(" ")
            if boot == boot_id and sequence.isdigit():
                self._told = int(sequence)

    def records(self) -> list[LogRecord]:
        found: list[LogRecord] = []
        booted = self._clock.now_seconds() - self._clock.monotonic_seconds()
        last = self._told
        while len(found) < MAX_RECORDS:
            try:
                data = os.read(self._file, _RECORD_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if (
                    error.errno == errno.EPIPE
                ):  # overwritten before it was read; the next read goes on after the gap
                    self.num_missed += 1
                    continue
                raise
            if not data:
                break
            message = parse_kmsg(data.decode("utf-8", "replace"))
            if message is not None and message.sequence > self._told:
                found.append(kernel_record(message, booted_at_seconds=booted))
                last = message.sequence
        if last != self._told:
            self._told = last
            self._save()
        return found

    def _save(self) -> None:
        if self._cursor is not None:
            with contextlib.suppress(OSError):  # a full disk costs repeated messages, nothing more
                temporary = self._cursor.with_suffix(".new")
                temporary.write_text(f"{self._boot_id} {self._told}\n", encoding="ascii")
                temporary.replace(self._cursor)

    def close(self) -> None:
        if self._file >= 0:
            file, self._file = self._file, -1
            os.close(file)


class JournalSource:
    """Follows journalctl, for users who may read the journal and not the device."""

    name = "kernel messages"

    def __init__(self, command: str) -> None:
        self._process = subprocess.Popen(
            [command, "--dmesg", "--follow", "--output=json", "--lines=0"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        self._file = self._process.stdout
        os.set_blocking(self._file.fileno(), False)
        self._rest = b""

    def records(self) -> list[LogRecord]:
        with contextlib.suppress(BlockingIOError):
            self._rest += os.read(self._file.fileno(), _RECORD_BYTES * MAX_RECORDS)
        *lines, self._rest = self._rest.split(b"\n")
        parsed = (parse_journal(line.decode("utf-8", "replace")) for line in lines)
        return [record for record in parsed if record is not None]

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait()
        self._file.close()


def open_kernel_log(
    *, state: Path | None, device: Path = Path("/dev/kmsg"), proc: Path = Path("/proc")
) -> LogSource | Absent:
    """Kernel messages, from the device or journalctl; ``state`` is the folder of the cursor."""
    boot_id = read_word(proc / "sys/kernel/random/boot_id")
    try:
        return KmsgSource(
            device, cursor=None if state is None else state / "kmsg.cursor", boot_id=boot_id or "?"
        )
    except OSError as error:
        reason = f"{device}: {error.strerror}"
    command = shutil.which("journalctl")
    if command is None:
        return Absent("kernel messages", f"{reason}; journalctl is not installed")
    return JournalSource(command)
