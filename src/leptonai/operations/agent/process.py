"""The agent as a process: sources, spool, sender and metrics page joined, from the start to a signal."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Self

from leptonai.core.clock import Clock, SystemClock
from leptonai.core.errors import InputError
from leptonai.operations.agent.collector import Collector, read_token
from leptonai.operations.agent.exporter import Exporter, families
from leptonai.operations.agent.loop import INTERVAL_SECONDS, PACK_SECONDS, Sampler, run_loop
from leptonai.operations.agent.opened import OPENERS, Sources
from leptonai.operations.agent.own import Sent
from leptonai.operations.agent.shipper import Shipper
from leptonai.operations.agent.source import Opener, Place, SeriesTable, Source
from leptonai.operations.agent.spool import SPOOL_BYTES, Spool

SHORTEST_SECONDS, LONGEST_SECONDS = 0.1, 300.0
"""Shorter and the agent would cost more than it tells; longer and Prometheus calls series stale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """How an agent runs.

    Args:
        node: the label ``node`` of all series.
        collector: where samples go; None: nowhere.
        spool: folder for what was not yet sent; None: memory only.
        spool_bytes: the most of it.
        listen: host and port of the metrics page; None: none.
        listen_token_file: the token that readers of the page need.
        interval_seconds: between two samples.
        per_core: processor time of each core, not of all together.
    """

    node: str
    collector: Collector | None = None
    spool: Path | None = None
    spool_bytes: int = SPOOL_BYTES
    listen: tuple[str, int] | None = None
    listen_token_file: Path | None = None
    interval_seconds: float = INTERVAL_SECONDS
    per_core: bool = False

    def __post_init__(self) -> None:
        if not self.node or not self.node.isprintable():
            raise InputError("the node needs a name", hint="give --node NAME")
        if not SHORTEST_SECONDS <= self.interval_seconds <= LONGEST_SECONDS:
            raise InputError(
                f"expected an interval of {SHORTEST_SECONDS} to {LONGEST_SECONDS:.0f} s, "
                f"found {self.interval_seconds}"
            )
        if self.collector is None and self.listen is None and self.spool is None:
            raise InputError(
                "nobody would get the samples", hint="give --collector URL, --listen HOST:PORT or --spool DIR"
            )


class StopSignals:
    """SIGTERM and SIGINT as something to wait for, without handlers that run in the middle of other work."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._before: dict[int, object] = {}
        self._wakeup = -1

    def wait(self, seconds: float) -> bool:
        """Whether a signal came within so many seconds; it stays come."""
        return bool(select.select([self._read], [], [], seconds)[0])

    def __enter__(self) -> Self:
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, _nothing)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._read)
        os.close(self._write)


def _nothing(number: int, frame: FrameType | None) -> None:
    """The wakeup pipe says it all."""


def run_agent_process(
    settings: AgentSettings,
    *,
    more: Iterable[Callable[[SeriesTable], Source]] = (),
    openers: Mapping[str, Opener] = OPENERS,
    say: Callable[[str], None] | None = None,
    clock: Clock | None = None,
) -> None:
    """Run an agent until SIGTERM or SIGINT; must be called from the main thread.

    Args:
        settings: how it runs.
        more: makes further sources.
        openers: of the node's sources.
        say: takes sentences for a person; None: standard error.

    Raises:
        InputError: the spool or the page's address cannot be used.
    """
    say, clock = say or _say, clock or SystemClock()
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopSignals())
        table, sent = SeriesTable({"node": settings.node}), Sent()
        spool = Spool(settings.spool, max_bytes=settings.spool_bytes, clock=clock)
        stack.callback(spool.close)
        sources = Sources(
            Place(table=table, per_core=settings.per_core), openers=openers, state=settings.spool
        )
        stack.callback(sources.close)
        for make in more:
            sources.add(make(table))
        shipper = _shipper(settings, spool, sent, say)
        if shipper is not None:
            stack.callback(shipper.close)
        keeps = spool if shipper is not None or settings.spool is not None else None
        sampler = Sampler(
            sources, table, keeps, clock=clock, sent=sent, interval_seconds=settings.interval_seconds,
            pack_seconds=PACK_SECONDS, on_parcel=shipper.wake if shipper is not None else lambda: None,
        )  # fmt: skip
        exporter = _exporter(settings, sampler, table)
        if exporter is not None:
            stack.callback(exporter.close)
            exporter.start()
            say(f"metrics at http://{exporter.host}:{exporter.port}/metrics")
        if shipper is not None:
            shipper.start()
        say(f"node {settings.node}: {', '.join(sources.present())}")
        for absent in sources.absent():
            say(f"without {absent.name}: {absent.reason}")
        run_loop(sampler, wait=stop.wait, clock=clock, interval_seconds=settings.interval_seconds)


def _shipper(settings: AgentSettings, spool: Spool, sent: Sent, say: Callable[[str], None]) -> Shipper | None:
    if settings.collector is None:
        return None
    return Shipper(spool, settings.collector, sent=sent, on_trouble=say)


def _exporter(settings: AgentSettings, sampler: Sampler, table: SeriesTable) -> Exporter | None:
    if settings.listen is None:
        return None
    token = None if settings.listen_token_file is None else read_token(settings.listen_token_file)
    host, port = settings.listen
    return Exporter(lambda: families(table.series, sampler.latest()), host=host, port=port, token=token)


def _say(sentence: str) -> None:
    sys.stderr.write(f"{sentence}\n")
    sys.stderr.flush()
