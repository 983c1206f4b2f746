"""One TensorBoard event file, through TensorBoard's own formats.

Its ready-made writers, and tensorboardX's, import TensorFlow or PyTorch where those are installed, seconds
and hundreds of megabytes that the launcher has no use for; the record writer and the messages do not.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


class EventFile:
    """Scalars by tag and step, flushed to the system at every write.

    Args:
        directory: made if it is not there; every writer adds a file of its own.
        first_step_again: steps from here on in older files no longer count, because they are taken again.
    """

    def __init__(self, directory: Path, *, first_step_again: int | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        now = time.time()
        name = f"events.out.tfevents.{int(now)}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
        self._file = (directory / name).open("wb")
        self._records = RecordWriter(self._file)
        self._add(Event(wall_time=now, file_version="brain.Event:2"))
        if first_step_again is not None:
            start = SessionLog(status=SessionLog.START)
            self._add(Event(wall_time=now, step=first_step_again, session_log=start))
        self._file.flush()

    def write(self, scalars: Mapping[str, float], *, step: int, at_seconds: float) -> None:
        """Add scalars of one step."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._add(Event(wall_time=at_seconds, step=step, summary=Summary(value=values)))
        self._file.flush()

    def close(self) -> None:
        """Finish the file."""
        self._file.close()

    def _add(self, event: Event) -> None:
        self._records.write(event.SerializeToString())
