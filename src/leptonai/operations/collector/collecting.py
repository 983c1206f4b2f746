"""The collector as a process: it takes in, keeps, watches and tells, from its start to a signal."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from leptonai.core.clock import Clock, SystemClock
from leptonai.core.errors import LeptonError
from leptonai.core.workspace import Workspace
from leptonai.operations.alarms import Alarm, Subject
from leptonai.operations.collector.message_watch import MessageWatch
from leptonai.operations.collector.node_watch import NodeWatch
from leptonai.operations.collector.peer_watch import PeerWatch
from leptonai.operations.collector.sweep import Sweep
from leptonai.operations.faults.catalogue import Catalogue, shipped
from leptonai.operations.incidents.channels import OpsSettings
from leptonai.operations.incidents.incident_store import IncidentStore
from leptonai.operations.incidents.notify import Outbox
from leptonai.operations.incidents.send import send
from leptonai.operations.ingest.access import Access
from leptonai.operations.ingest.exposition import Family, family
from leptonai.operations.ingest.intake import Intake
from leptonai.operations.ingest.limits import IngestLimits
from leptonai.operations.ingest.logs import LogLine
from leptonai.operations.ingest.scrape import Scraper, describe_in, into
from leptonai.operations.ingest.scrape_target import Target
from leptonai.operations.ingest.server import IngestServer, make_app
from leptonai.operations.store import MetricsStore

SWEEP_SECONDS = 5.0
PEER_SECONDS = 300.0
CALL_SECONDS = 2.0
LOOK_BACK_SECONDS = 3600.0
"""Changes of incidents older than this are not told by a collector that starts: people have seen them."""
MOST_MESSAGES = 10_000
"""That wait to be looked at; further ones are counted and dropped."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectorSettings:
    """What a collector does, and where.

    Args:
        store: folder of the samples.
        host, port: where it listens; port 0: any free one.
        access: who may read and write.
        ops: whom to tell of incidents.
        catalogue: what messages mean.
        targets: pages to scrape.
        peers: pattern of names of nodes that do the same work; empty: none are compared.
    """

    store: Path
    host: str = "127.0.0.1"
    port: int = 9095
    access: Access = field(default_factory=Access)
    ops: OpsSettings = field(default_factory=OpsSettings)
    catalogue: Catalogue | None = None
    targets: tuple[Target, ...] = ()
    peers: str = ""


class Desk:
    """Alarms on their way to incidents, and incidents on their way to people. Safe to use from two threads.

    Args:
        say: told once of each kind of trouble.
    """

    def __init__(self, workspace: Workspace, ops: OpsSettings, *, clock: Clock, say: Say) -> None:
        self._ops, self._clock, self._say = ops, clock, say
        self._incidents = IncidentStore(workspace, clock=clock)
        self._outbox = Outbox(workspace, clock=clock, send=send)
        self._after, self._since = 0, clock.now_seconds() - LOOK_BACK_SECONDS
        self._said: set[str] = set()
        self.num_alarms = 0

    def take(self, alarms: Iterable[Alarm]) -> None:
        """Keep alarms in incidents."""
        for alarm in alarms:
            self.num_alarms += 1
            with self._told_once("an alarm could not be kept"):
                self._incidents.take(alarm, places=places_of(alarm))

    def call(self) -> int:
        """Tell people what changed, by whomever; how many calls were made."""
        with self._told_once("calls could not be made"):
            for number, placed in self._incidents.changes(after=self._after, since_seconds=self._since):
                self._outbox.take(placed, self._ops)
                self._after = number
            return self._outbox.deliver(self._ops, self._incidents)
        return 0

    @contextlib.contextmanager
    def _told_once(self, what: str) -> Iterator[None]:
        try:
            yield
        except LeptonError as error:
            if what not in self._said:
                self._said.add(what)
                self._say(f"{what}: {error.message}")


def places_of(alarm: Alarm) -> dict[Subject, str]:
    """The node of an alarm about a series, which stands among its labels.

    >>> about = Subject("series", 'load{node="a"}')
    >>> places_of(Alarm(kind="anomaly", subject=about, severity="info", at_seconds=0.0, since_seconds=0.0, message=""))
    {Subject(kind='series', name='load{node="a"}'): 'a'}
    """
    _, found, rest = alarm.subject.name.partition('node="')
    if alarm.subject.kind != "series" or not found or alarm.run_id:
        return {}
    return {alarm.subject: rest.partition('"')[0]}


class Collecting:
    """A collector's parts, joined; :meth:`turn` is one round of its work.

    Args:
        settings: what it does.
        store: of samples, open.
        workspace: of incidents, open.
    """

    def __init__(
        self,
        settings: CollectorSettings,
        store: MetricsStore,
        workspace: Workspace,
        *,
        clock: Clock,
        say: Say,
    ) -> None:
        self._store, self._clock, self._say = store, clock, say
        self.nodes = NodeWatch()
        self.sweep = Sweep(store, self.nodes, clock=clock)
        self.desk = Desk(workspace, settings.ops, clock=clock, say=say)
        self.intake = Intake(store, limits=IngestLimits(), clock=clock)
        self._messages: queue.Queue[LogLine] = queue.Queue(MOST_MESSAGES)
        self._message_watch = MessageWatch(settings.catalogue or shipped())
        self._peers = PeerWatch(settings.peers) if settings.peers else None
        self._peers_due = clock.now_seconds() + PEER_SECONDS
        self.num_dropped_messages = 0

    def take_messages(self, messages: Iterable[LogLine]) -> None:
        """Messages of machines, from any thread."""
        for each in messages:
            try:
                self._messages.put_nowait(each)
            except queue.Full:
                self.num_dropped_messages += 1

    def turn(self) -> None:
        """Look at all that has come."""
        now = self._clock.now_seconds()
        alarms: list[Alarm] = []
        while not self._messages.empty():
            alarm = self._message_watch.take(self._messages.get_nowait())
            alarms += [] if alarm is None else [alarm]
        try:
            alarms += self.sweep.look()
            if self._peers is not None and now >= self._peers_due:
                self._peers_due = now + PEER_SECONDS
                alarms += self._peers.look(self._store, now_seconds=now)
        except LeptonError as error:
            self._say(f"the latest samples could not be looked at: {error.message}")
        self.desk.take([*alarms, *self.nodes.look(now_seconds=now)])

    def metrics(self) -> list[Family]:
        """For ``/metrics``."""
        num = {"watched": self.sweep.num_watched, "unwatched": self.sweep.num_unwatched}
        rows = [({"state": state}, float(count)) for state, count in num.items()]
        return [
            family("lepton_collector_series", "gauge", "Series with a detector, and those without.", *rows),
            family("lepton_collector_alarms", "counter", "Alarms raised, ends included.",
                   ({}, float(self.desk.num_alarms))),
            family("lepton_collector_messages", "counter", "Messages of machines taken in.",
                   ({}, float(self._message_watch.num_messages))),
            family("lepton_collector_dropped_messages", "counter", "Messages dropped because too many waited.",
                   ({}, float(self.num_dropped_messages))),
            family("lepton_collector_nodes", "gauge", "Nodes ever heard of.", ({}, float(len(self.nodes.nodes)))),
        ]  # fmt: skip


def run_collector(
    settings: CollectorSettings,
    workspace: Workspace,
    *,
    wait: Callable[[float], bool],
    say: Say,
    clock: Clock | None = None,
    on_listening: Callable[[str], None] = lambda url: None,
) -> None:
    """Collect until ``wait`` says that it is over.

    Args:
        settings: what it does.
        workspace: where incidents are kept.
        wait: waits so many seconds; True: end now.
        say: told one sentence about whatever goes wrong.
        on_listening: told the address once it answers.

    Raises:
        InputError: the store is in use or cannot be made, or the listener cannot be had.
    """
    clock = clock or SystemClock()
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(MetricsStore.open(settings.store, clock=clock, say=say))
        parts = Collecting(settings, store, workspace, clock=clock, say=say)
        intake = parts.intake
        scraper = Scraper(settings.targets, into(intake), clock=clock, describe=describe_in(intake), say=say)
        app = make_app(
            intake, access=settings.access, take_logs=parts.take_messages,
            more_metrics=lambda: [*parts.metrics(), *scraper.metrics()],
        )  # fmt: skip
        server = IngestServer(app, access=settings.access, host=settings.host, port=settings.port)
        stack.enter_context(server)
        stack.enter_context(scraper)
        over = threading.Event()
        calls = threading.Thread(target=_call_on, args=(parts.desk, over), name="lepton-calls", daemon=True)
        calls.start()
        stack.callback(calls.join)
        stack.callback(over.set)
        on_listening(server.url)
        while not wait(SWEEP_SECONDS):
            parts.turn()
        parts.turn()


def _call_on(desk: Desk, over: threading.Event) -> None:
    """A channel that does not answer holds up other calls only, no watch."""
    while not over.wait(CALL_SECONDS):
        desk.call()
    desk.call()
