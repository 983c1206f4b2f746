"""Scraping: pages of targets fetched again and again, each in a thread of its own, so that none waits for another."""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Self

from leptonai.core.clock import Clock
from leptonai.core.errors import Fault, InputError, LeptonError
from leptonai.operations.ingest.exposition import Family, family
from leptonai.operations.ingest.intake import Intake
from leptonai.operations.ingest.openmetrics import is_openmetrics, parse
from leptonai.operations.ingest.scrape_samples import (
    REPORTS,
    ended,
    infos_of,
    page_samples,
    report_samples,
)
from leptonai.operations.ingest.scrape_target import PageReader, Target
from leptonai.operations.series import Sample, Series

Take = Callable[[Sequence[Sample]], object]
"""Takes the samples of one scrape; raises Fault where they cannot be kept."""
Describe = Callable[[str, str, str, str], object]
"""Takes a metric's name, kind, unit and help."""
Say = Callable[[str], object]

MAX_TARGETS = 500
"""A thread each; more belong to more than one collector."""
MAX_KNOWN_KINDS = 20_000
"""Metrics of one target whose kind is remembered, to notice that it changes."""
CLOSE_SECONDS = 5.0


def into(intake: Intake) -> Take:
    """Take samples into a store; each target has the limit of series of a client of its own."""

    def take(samples: Sequence[Sample]) -> object:
        if not samples:
            return None
        client = f"target {samples[0].series.get('job')} {samples[0].series.get('instance')}"
        return intake.put_samples("scrape", client, samples)

    return take


def describe_in(intake: Intake) -> Describe:
    """Keep what is known of metrics in a store."""
    return lambda name, kind, unit, help: intake.describe("scrape", [(name, kind, unit, help)])


class TargetScrape:
    """One target's scrapes, one after the other.

    Args:
        target: what to scrape.
        take: takes the samples, markers of series that ended included.
        clock: wall time for samples, monotonic for how long a scrape took.
        describe: told of each metric once, and again where it changed.
        say: told when the target stops or begins to answer, and when a metric changes its type.
    """

    def __init__(
        self,
        target: Target,
        take: Take,
        *,
        clock: Clock,
        describe: Describe = lambda name, kind, unit, help: None,
        say: Say = lambda words: None,
    ) -> None:
        self.target, self._take, self._clock, self._describe, self._say = target, take, clock, describe, say
        self._reader = PageReader(target)
        self._living: frozenset[Series] = frozenset()
        self._infos: dict[str, tuple[str, str, str]] = {}
        self._said = ""
        self._is_closed = False
        self.is_up: bool | None = None
        self.num_scrapes = self.num_failed = self.num_not_kept = self.num_type_changes = 0

    def turn(self) -> None:
        """Scrape once, now."""
        at_seconds = round(self._clock.now_seconds() * 1000) / 1000
        began = self._clock.monotonic_seconds()
        samples: list[Sample] = []
        living: frozenset[Series] = frozenset()
        families: list[Family] = []
        num_points, problem = 0, ""
        try:
            page = self._reader.fetch()
            families = parse(page.text, openmetrics=is_openmetrics(page.content_type))
            scraped = page_samples(families, self.target, at_seconds=at_seconds)
            samples, living, num_points = scraped.samples, scraped.living, scraped.num_points
        except (Fault, InputError) as error:
            problem = error.message
        if self._is_closed:
            return  # we ended the fetch ourselves, which says nothing about the target
        self.num_scrapes += 1
        self.num_failed += bool(problem)
        self.is_up = not problem
        samples += ended(self._living - living, at_seconds=at_seconds)
        samples += report_samples(
            self.target, at_seconds=at_seconds, is_up=not problem, num_points=num_points,
            duration_seconds=self._clock.monotonic_seconds() - began,
        )  # fmt: skip
        self._keep(samples, living)
        self._note(problem)
        self._look_at_kinds(families)

    def gone(self) -> None:
        """The target is no longer scraped: all its series end, ``up`` included."""
        at_seconds = round(self._clock.now_seconds() * 1000) / 1000
        told = [Series.of(name, **self.target.own_labels) for name in REPORTS] if self.num_scrapes else []
        if told or self._living:
            self._keep(ended({*self._living, *told}, at_seconds=at_seconds), frozenset())

    def close(self) -> None:
        """End the scrape under way; from any thread."""
        self._is_closed = True
        self._reader.close()

    def _keep(self, samples: list[Sample], living: frozenset[Series]) -> None:
        try:
            self._take(samples)
            self._living = living
        except LeptonError as error:
            self.num_not_kept += len(samples)
            self._living |= living  # so that whatever was kept of them is ended later
            self._say(f"samples of {self.target.name} could not be kept: {error.message}")

    def _note(self, problem: str) -> None:
        if problem and not self._said:
            self._say(f"{self.target.name} ({self.target.job}) cannot be scraped: {problem}")
        elif self._said and not problem:
            self._say(f"{self.target.name} ({self.target.job}) answers again")
        self._said = problem

    def _look_at_kinds(self, families: Sequence[Family]) -> None:
        for name, info in infos_of(families).items():
            before = self._infos.get(name)
            if before == info or (before is None and len(self._infos) >= MAX_KNOWN_KINDS):
                continue
            self._infos[name] = info
            if before is not None and before[0] != info[0]:
                self.num_type_changes += 1
                self._say(f"{self.target.name}: {name} was a {before[0]} and is now a {info[0]}")
            try:
                self._describe(name, *info)
            except LeptonError as error:
                self._say(f"{name} could not be described: {error.message}")


class _Loop:
    """A target's thread."""

    def __init__(self, scrape: TargetScrape, clock: Clock) -> None:
        self.scrape, self._clock = scrape, clock
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lepton-scrape", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        self.scrape.close()

    def join(self) -> bool:
        self._thread.join(CLOSE_SECONDS)
        return not self._thread.is_alive()

    def _run(self) -> None:
        target = self.scrape.target
        due = self._clock.monotonic_seconds() + first_delay_seconds(target)
        while not self._over.wait(max(0.0, due - self._clock.monotonic_seconds())):
            self.scrape.turn()
            due = next_due_seconds(due, self._clock.monotonic_seconds(), target.interval_seconds)


def first_delay_seconds(target: Target) -> float:
    """When a target's first scrape is due: spread over its interval, the same at each start."""
    return zlib.crc32(f"{target.job} {target.url}".encode()) / (1 << 32) * target.interval_seconds


def next_due_seconds(due: float, now: float, interval_seconds: float) -> float:
    """When the next scrape is due; those that were missed are left out.

    >>> next_due_seconds(10.0, 10.2, 5.0), next_due_seconds(10.0, 23.0, 5.0)
    (15.0, 25.0)
    """
    return due + interval_seconds * max(1, math.ceil((now - due) / interval_seconds))


class Scraper:
    """Scrapes targets from ``start`` to ``close``.

    Args:
        targets: what to scrape.
        take: takes the samples of one scrape; called from several threads. See :func:`into`.
        clock: of the samples.
        describe: told of metrics; see :func:`describe_in`.
        say: told one sentence when something changes.

    Raises:
        InputError: two targets are the same, or there are too many.
    """

    def __init__(
        self,
        targets: Iterable[Target],
        take: Take,
        *,
        clock: Clock,
        describe: Describe = lambda name, kind, unit, help: None,
        say: Say = lambda words: None,
    ) -> None:
        self._first = _checked(targets)
        self._take, self._clock, self._describe, self._say = take, clock, describe, say
        self._lock = threading.Lock()
        self._loops: dict[Target, _Loop] = {}

    def start(self) -> None:
        """Begin to scrape."""
        self.set_targets(self._first)

    def set_targets(self, targets: Iterable[Target]) -> None:
        """Scrape these from now on; the series of those that are no longer among them end.

        Raises:
            InputError: two targets are the same, or there are too many; nothing is changed.
        """
        wanted = _checked(targets)
        with self._lock:
            removed = [self._loops.pop(target) for target in [*self._loops] if target not in wanted]
            for loop in self._ended(removed):
                loop.scrape.gone()
            for target in wanted:
                if target not in self._loops:
                    self._loops[target] = loop = _Loop(self._scrape(target), self._clock)
                    loop.start()

    def _scrape(self, target: Target) -> TargetScrape:
        return TargetScrape(target, self._take, clock=self._clock, describe=self._describe, say=self._say)

    def _ended(self, loops: list[_Loop]) -> list[_Loop]:
        """End threads; those that ended, which is all of them but where the name service hangs."""
        for loop in loops:
            loop.end()
        return [loop for loop in loops if loop.join()]

    def close(self) -> None:
        """Stop; again is allowed. Series do not end: whoever starts again goes on with them."""
        with self._lock:
            loops = [*self._loops.values()]
            self._loops.clear()
            self._ended(loops)

    def metrics(self) -> list[Family]:
        """What the scraper says of itself, for ``/metrics``."""
        with self._lock:
            scrapes = [loop.scrape for loop in self._loops.values()]
        rows = [({"job": each.target.job, "instance": each.target.name}, each) for each in scrapes]
        return [
            family("lepton_scrape_targets", "gauge", "Targets that are scraped.", ({}, float(len(rows)))),
            family("lepton_scrape_failed", "counter", "Scrapes that failed.",
                   *((labels, float(each.num_failed)) for labels, each in rows)),
            family("lepton_scrape_type_changes", "counter", "Metrics whose type changed between two scrapes.",
                   *((labels, float(each.num_type_changes)) for labels, each in rows)),
            family("lepton_scrape_samples_not_kept", "counter", "Samples that the store could not take.",
                   *((labels, float(each.num_not_kept)) for labels, each in rows)),
        ]  # fmt: skip

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _checked(targets: Iterable[Target]) -> list[Target]:
    found = list(targets)
    if len({(each.job, each.name) for each in found}) != len(found):
        raise InputError("two targets have the same job and instance", hint="give one of them an instance")
    if len(found) > MAX_TARGETS:
        raise InputError(f"there are {len(found)} targets, and may be {MAX_TARGETS}")
    return found
