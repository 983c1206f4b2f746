"""The agent inside a run: a thread of the launcher that never ends a run, whatever befalls it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from leptonai.core.clock import Clock, SystemClock
from leptonai.core.errors import LeptonError
from leptonai.core.events import Event
from leptonai.operations.agent.collector import collector_at
from leptonai.operations.agent.from_events import observe
from leptonai.operations.agent.loop import INTERVAL_SECONDS, Sampler, run_loop
from leptonai.operations.agent.opened import OPENERS, Sources, reason_of
from leptonai.operations.agent.own import Sent
from leptonai.operations.agent.registry import Registry, RegistrySource
from leptonai.operations.agent.shipper import Shipper
from leptonai.operations.agent.source import Opener, Place, SeriesTable
from leptonai.operations.agent.spool import Spool

RUN_SPOOL_BYTES = 8 << 20
"""About an hour at 300 series: a run's folder is no archive."""
FLUSH_SECONDS = 2.0
"""A run that is done does not wait longer for a collector."""
STOP_SECONDS = 5.0


class RunAgent:
    """Samples this node and the run each second while a run goes on; use with ``with``, or start and close.

    It is a sink of events: what they say becomes values of :attr:`registry`, where the launcher may put more. All
    series have the labels ``node`` and ``run_id``. No method raises: what fails is counted in :attr:`num_failures`,
    and the first failure of a kind is told.

    Args:
        spool_dir: below the run's directory; None: memory only.
        collector_url: where samples go; empty or None: nowhere, the spool then keeps the latest.
        token_file: of the collector.
        run_id: label of all series.
        node: label of all series; empty: this host's name.
        on_trouble: takes a sentence, the first time something fails.
        openers: of the node's sources.
    """

    def __init__(
        self,
        spool_dir: Path | None,
        collector_url: str | None,
        token_file: Path | None,
        run_id: str,
        *,
        node: str = "",
        on_trouble: Callable[[str], None] = lambda sentence: None,
        interval_seconds: float = INTERVAL_SECONDS,
        spool_bytes: int = RUN_SPOOL_BYTES,
        openers: Mapping[str, Opener] = OPENERS,
        clock: Clock | None = None,
    ) -> None:
        self.registry = Registry()
        self.num_failures = 0
        self._spool_dir, self._spool_bytes = spool_dir, spool_bytes
        self._url, self._token_file = collector_url, token_file
        self._labels = {"node": node or socket.gethostname(), "run_id": run_id}
        self._on_trouble, self._told = on_trouble, set[str]()
        self._interval_seconds, self._openers = interval_seconds, openers
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; a second call does nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="lepton-agent", daemon=True)
            self._thread.start()

    def __call__(self, event: Event) -> None:
        """Take over what an event says."""
        try:
            observe(self.registry, event)
        except Exception as error:  # whatever an event holds, the run goes on
            self._failed("an event could not be counted", error)

    def close(self) -> None:
        """Say goodbye, send what is left for a bounded time, and stop; again is allowed."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS + FLUSH_SECONDS)

    def _run(self) -> None:
        try:
            with contextlib.ExitStack() as stack:
                self._work(stack)
        except Exception as error:  # the report of this thread's death; the run does not need it
            self._failed("the metrics of this run have ended", error)

    def _work(self, stack: contextlib.ExitStack) -> None:
        table, sent = SeriesTable(self._labels), Sent()
        spool = self._open_spool()
        stack.callback(spool.close)
        sources = Sources(Place(table=table), openers=self._openers, kernel_log=None)
        stack.callback(sources.close)
        sources.add(RegistrySource(self.registry, table))
        shipper = self._shipper(spool, sent)
        if shipper is not None:
            stack.callback(shipper.close, flush_seconds=FLUSH_SECONDS)
            shipper.start()
        sampler = Sampler(
            sources, table, spool, clock=self._clock, sent=sent, own_process=False,
            interval_seconds=self._interval_seconds, on_parcel=shipper.wake if shipper is not None else lambda: None,
        )  # fmt: skip
        run_loop(sampler, wait=self._stop.wait, clock=self._clock, interval_seconds=self._interval_seconds)

    def _open_spool(self) -> Spool:
        try:
            return Spool(self._spool_dir, max_bytes=self._spool_bytes, clock=self._clock)
        except LeptonError as error:
            self._failed("metrics are kept in memory only", error)
            return Spool(None, max_bytes=self._spool_bytes, clock=self._clock)

    def _shipper(self, spool: Spool, sent: Sent) -> Shipper | None:
        if not self._url:
            return None
        try:
            collector = collector_at(self._url, token_file=self._token_file)
        except LeptonError as error:
            self._failed("metrics are not sent", error)
            return None
        return Shipper(spool, collector, sent=sent, on_trouble=self._tell, clock=self._clock)

    def _failed(self, what: str, error: Exception) -> None:
        with self._lock:
            self.num_failures += 1
            is_new = what not in self._told
            self._told.add(what)
        if is_new:
            reason = error.message if isinstance(error, LeptonError) else reason_of(error)
            self._tell(f"{what}: {reason}")

    def _tell(self, sentence: str) -> None:
        with contextlib.suppress(Exception):  # one who does not want to hear it must not stop us either
            self._on_trouble(sentence)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
