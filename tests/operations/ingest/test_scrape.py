"""Scraping over real connections: what a page holds, what ends, and what broken targets cost."""

from __future__ import annotations

import gzip
import math
import struct
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from leptonai.core.clock import FakeClock, SystemClock
from leptonai.core.errors import Fault, InputError
from leptonai.operations.agent.catalogue import CATALOGUE
from leptonai.operations.agent.exporter import Exporter, families
from leptonai.operations.agent.source import SeriesTable
from leptonai.operations.ingest.exposition import Family, family
from leptonai.operations.ingest.intake import Intake
from leptonai.operations.ingest.limits import IngestLimits
from leptonai.operations.ingest.scrape import Scraper, TargetScrape, describe_in, into
from leptonai.operations.ingest.scrape_target import Target
from leptonai.operations.series import STALE_NAN, Sample, Series
from leptonai.operations.store import Matcher, MetricsStore
from tests.operations.ingest.pages import Pages, ok, serving
from tests.operations.ingest.test_prometheus import PROMETHEUS, prometheus, wait_for

NOW_SECONDS = 1_700_000_000.0
STALE_BITS = struct.pack("<d", STALE_NAN)
REPORTS = {"up", "scrape_duration_seconds", "scrape_samples_scraped"}


class Kept:
    """Takes samples; the latest of each series."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def __call__(self, samples: Sequence[Sample]) -> None:
        self.samples += samples

    def take_all(self) -> list[Sample]:
        found, self.samples = self.samples, []
        return found

    def page(self) -> dict[str, float]:
        """Of the last scrape, without what it says of itself."""
        return {repr(each.series): each.value for each in self.take_all() if each.series.name not in REPORTS}


def is_stale(value: float) -> bool:
    return struct.pack("<d", value) == STALE_BITS


def scrape_of(
    pages: Pages, kept: Any, *, clock: Any = None, say: Any = lambda _: None, **words: Any
) -> TargetScrape:
    target = Target(url=pages.url, job="j", instance="i", **{"timeout_seconds": 5.0, **words})
    return TargetScrape(target, kept, clock=clock or FakeClock(start_seconds=NOW_SECONDS), say=say)


def test_the_page_of_our_agent_is_scraped_sample_by_sample() -> None:
    table = SeriesTable({"node": 'a "quoted"\\ \n one'})
    readings = [(table.key(name, device="d"), 1.5 + at) for at, name in enumerate(CATALOGUE)]
    readings += [(table.with_common(name, {}), 2.0) for name in ("mine", "mine_too_total")]
    exporter = Exporter(lambda: families(table.series, readings))
    exporter.start()
    try:
        kept = Kept()
        target = Target(url=f"http://127.0.0.1:{exporter.port}/metrics", job="node", labels=(("rack", "r1"),))
        TargetScrape(target, kept, clock=FakeClock(start_seconds=NOW_SECONDS)).turn()
    finally:
        exporter.close()
    instance = f"127.0.0.1:{exporter.port}"
    expected = {
        Sample(
            Series.of(table.series[key].name, job="node", instance=instance, rack="r1",
                      **{name: text for name, text in table.series[key].labels if name != "__name__"}),
            NOW_SECONDS, value,
        )
        for key, value in readings
    }  # fmt: skip
    assert len(expected) == len(CATALOGUE) + 2
    assert {each for each in kept.samples if each.series.name not in REPORTS} == expected
    told = {each.series.name: each.value for each in kept.samples if each.series.name in REPORTS}
    assert (told["up"], told["scrape_samples_scraped"]) == (1.0, float(len(expected)))


BIG = b"a 1\n" * 3000


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", "answered 500"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n", "answered 302"),
        (b"garbage\r\n\r\n", "no answer"), (b"", "no answer"),
        (ok(b"good 1\nbroken{ 2\n"), "line 2"),
        (ok(b"good 1\n").replace(b"Length: 7", b"Length: 9"), "cut off"),
        (ok(b"good 1\n", kind="application/openmetrics-text"), "cut off"),
        (ok(b"a{b=\"\xff\"} 1\n"), "UTF-8"), (ok(BIG), "larger than"),
        (ok(gzip.compress(BIG), more="Content-Encoding: gzip\r\n"), "unpacked"),
        (ok(gzip.compress(b"a 1\n")[:-4], more="Content-Encoding: gzip\r\n"), "cut off"),
        (ok(b"a 1\n", more="Content-Encoding: gzip\r\n"), "not gzip"),
        (ok(b"a 1\n", more="Content-Encoding: br\r\n"), "encoded as 'br'"),
        (ok(b"".join(b'a{n="%d"} 1\n' % at for at in range(101))), "more than 100 samples"),
        (ok(b"# TYPE a counter\n# TYPE a gauge\na 1\n"), "changes its type"),
    ],
)  # fmt: skip
def test_a_broken_page_fails_the_whole_scrape_and_the_next_may_succeed(answer: bytes, says: str) -> None:
    kept, said = Kept(), list[str]()
    clock = FakeClock(start_seconds=NOW_SECONDS)
    with serving(answer) as pages:
        scrape = scrape_of(pages, kept, clock=clock, say=said.append, max_page_bytes=8000, max_samples=100)
        scrape.turn()
        assert {each.series.name: each.value for each in kept.take_all()} == {
            "up": 0.0, "scrape_duration_seconds": 0.0, "scrape_samples_scraped": 0.0}  # fmt: skip
        scrape.turn()
        assert len(said) == 1
        assert says in said[0]
        pages.answer = ok(gzip.compress(b"a 1\n"), more="Content-Encoding: gzip\r\n")
        kept.take_all()
        scrape.turn()
        assert kept.page() == {'a{instance="i",job="j"}': 1.0}
    assert said[1:] == ["i (j) answers again"]
    assert (scrape.num_scrapes, scrape.num_failed) == (3, 2)


def test_a_target_that_hangs_is_given_up_in_time() -> None:
    dripping = threading.Event()

    def drip(_: str) -> bytes:
        dripping.wait(10.0)
        return b""

    with serving(drip) as pages:
        kept, said = Kept(), list[str]()
        began = time.monotonic()
        scrape_of(pages, kept, clock=SystemClock(), say=said.append, timeout_seconds=0.3).turn()
        assert time.monotonic() - began < 3.0
        dripping.set()
    assert [each.value for each in kept.samples if each.series.name == "up"] == [0.0]
    assert "within 0.3 s" in said[0]


def test_bytes_that_come_one_by_one_do_not_prolong_a_scrape() -> None:
    def reply(request: Any) -> None:
        request.recv(4096)
        request.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n")
        for _ in range(400):
            request.sendall(b"#")
            if pages.over.wait(0.02):
                return

    with serving(b"") as pages:
        pages.reply = reply  # type: ignore[method-assign]
        said: list[str] = []
        began = time.monotonic()
        scrape_of(pages, Kept(), clock=SystemClock(), say=said.append, timeout_seconds=0.4).turn()
        assert time.monotonic() - began < 3.0
    assert "within 0.4 s" in said[0]


def test_a_series_that_vanishes_is_ended_once() -> None:
    kept = Kept()
    clock = FakeClock(start_seconds=NOW_SECONDS)
    with serving(ok(b'a{n="1"} 1\na{n="2"} 2\nown_time 3 1700000000500\n')) as pages:
        scrape = scrape_of(pages, kept, clock=clock)
        scrape.turn()
        kept.take_all()
        clock.advance(1.0)
        pages.answer = ok(b'a{n="1"} 1\n')
        scrape.turn()
        ended = [each for each in kept.take_all() if is_stale(each.value)]
        assert [(each.series.get("n"), each.at_seconds) for each in ended] == [("2", NOW_SECONDS + 1.0)]
        scrape.turn()
        assert not [each for each in kept.take_all() if is_stale(each.value)]
        pages.answer = b""  # the target fails: everything of it ends, but not what is told of the scrape
        scrape.turn()
        found = kept.take_all()
        assert [each.series.get("n") for each in found if is_stale(each.value)] == ["1"]
        assert [each.value for each in found if each.series.name == "up"] == [0.0]
        scrape.gone()
        assert {each.series.name for each in kept.take_all() if is_stale(each.value)} == REPORTS


def test_labels_of_the_page_give_way_and_times_are_honoured_or_not() -> None:
    page = ok(b'a{job="theirs",exported_job="x",empty=""} 1 1700000000250\n')
    with serving(page) as pages:
        for honor, at_seconds in ((True, NOW_SECONDS + 0.25), (False, NOW_SECONDS)):
            kept = Kept()
            scrape_of(pages, kept, honor_timestamps=honor).turn()
            (found,) = [each for each in kept.samples if each.series.name == "a"]
            assert found.at_seconds == at_seconds
            assert dict(found.series.labels) == {
                "__name__": "a", "job": "j", "instance": "i", "exported_job": "x",
                "exported_exported_job": "theirs"}  # fmt: skip


def test_a_series_that_comes_twice_counts_once() -> None:
    kept = Kept()
    with serving(ok(b"a 1\na 2\n")) as pages:
        scrape_of(pages, kept).turn()
    assert [each.value for each in kept.samples if each.series.name == "a"] == [1.0]


def test_a_counter_that_changes_its_type_is_told(tmp_path: Path) -> None:
    clock = FakeClock(start_seconds=NOW_SECONDS)
    said: list[str] = []
    with (
        serving(ok(b"# TYPE a_total counter\na_total 1\n")) as pages,
        MetricsStore.open(tmp_path / "store", clock=clock) as store,
    ):
        intake = Intake(store, limits=IngestLimits(), clock=clock)
        target = Target(url=pages.url, job="j")
        scrape = TargetScrape(
            target, into(intake), clock=clock, describe=describe_in(intake), say=said.append
        )
        scrape.turn()
        assert store.metadata()["a_total"].kind == "counter"
        pages.answer = ok(b"# TYPE a_total gauge\na_total 0\n")
        clock.advance(1.0)
        scrape.turn()
        assert (scrape.num_type_changes, store.stats().num_type_changes) == (1, 1)
        (found,) = store.select([Matcher("__name__", "=", "a_total")], 0, 1 << 60)
        assert found.values.tolist() == [1.0, 0.0]
    assert any("a_total was a counter and is now a gauge" in words for words in said)


def test_a_store_that_cannot_write_loses_no_marker() -> None:
    kept, broken = Kept(), [False]

    def take(samples: Sequence[Sample]) -> None:
        if broken[0]:
            raise Fault("the disk is full")
        kept(samples)

    with serving(ok(b"a 1\n")) as pages:
        scrape = scrape_of(pages, take)
        scrape.turn()
        pages.answer, broken[0] = ok(b"b 1\n"), True
        scrape.turn()
        assert scrape.num_not_kept == 5
        broken[0] = False
        kept.take_all()
        scrape.turn()
    assert [each.series.name for each in kept.samples if is_stale(each.value)] == ["a"]


def test_the_token_is_read_anew_and_never_shown(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("one\n")
    token.chmod(0o600)
    with serving(ok(b"a 1\n")) as pages:
        scrape = scrape_of(pages, Kept(), token_file=token)
        scrape.turn()
        token.write_text("two\n")
        scrape.turn()
        assert ["Bearer one" in pages.asked[0], "Bearer two" in pages.asked[1]] == [True, True]
        token.unlink()
        scrape.turn()
        assert len(pages.asked) == 2  # nothing is asked without it
    with pytest.raises(InputError, match="unencrypted"):
        Target(url="http://example.org/metrics", job="j", token_file=token)
    assert Target(url="https://example.org/metrics", job="j", token_file=token).name == "example.org:443"


@pytest.mark.parametrize(
    "words",
    [{"url": "ftp://a/"}, {"url": "http://u:secret@a/"}, {"url": "http://a/\r\nX: y"}, {"url": "http://a:x/"},
     {"url": "http://[a/"}, {"job": ""}, {"timeout_seconds": 99.0}, {"labels": (("job", "x"),)},
     {"labels": (("0", "x"),)}, {"labels": (("a", "x"), ("a", "y"))}, {"max_samples": 0}],
)  # fmt: skip
def test_a_target_that_cannot_be_is_refused(words: dict[str, Any]) -> None:
    with pytest.raises(InputError) as found:
        Target(**{"url": "http://127.0.0.1:1/", "job": "j", **words})
    assert "secret" not in str(found.value)


def test_targets_are_scraped_on_their_intervals_until_closed(tmp_path: Path) -> None:
    clock = SystemClock()
    hanging = threading.Event()
    before = threading.active_count()

    def hang(_: str) -> bytes:
        hanging.wait(30.0)
        return b""

    with (
        serving(ok(b"a 1\n")) as one, serving(ok(b"b 2\n")) as two, serving(hang) as three,
        MetricsStore.open(tmp_path / "store", clock=clock) as store,
    ):  # fmt: skip
        intake = Intake(store, limits=IngestLimits(), clock=clock)
        quick: dict[str, Any] = {"interval_seconds": 0.05, "timeout_seconds": 0.05}
        targets = [Target(url=one.url, job="one", **quick), Target(url=two.url, job="two", **quick)]
        slow = Target(url=three.url, job="three", interval_seconds=20.0, timeout_seconds=20.0)
        scraper = Scraper(targets, into(intake), clock=clock, describe=describe_in(intake))
        with scraper:
            wait_for(lambda: len(one.asked) >= 3 and len(two.asked) >= 3)
            scraper.set_targets([targets[1]])
            num_asked = len(one.asked)
            stopped = len(two.asked)
            wait_for(lambda: len(two.asked) > stopped + 2)
            assert len(one.asked) == num_asked
            (gone,) = store.select([Matcher("__name__", "=", "up"), Matcher("job", "=", "one")], 0, 1 << 60)
            assert is_stale(gone.values[-1])
            (goes_on,) = store.select([Matcher("__name__", "=", "b")], 0, 1 << 60)
            assert set(goes_on.values.tolist()) == {2.0}
            with pytest.raises(InputError, match="same job"):
                scraper.set_targets([targets[0], targets[0]])
            loops = scraper.metrics()
            assert loops[0].points[0].value == 1.0
        hung = TargetScrape(slow, into(intake), clock=clock)
        thread = threading.Thread(target=hung.turn)
        thread.start()
        wait_for(lambda: bool(three.asked))
        began = time.monotonic()
        hung.close()
        thread.join(5.0)
        assert not thread.is_alive()
        assert time.monotonic() - began < 5.0
        assert not list(store.select([Matcher("job", "=", "three")], 0, 1 << 60))
        hanging.set()
        scraper.close()
    assert threading.active_count() <= before


def test_one_target_cannot_fill_the_store(tmp_path: Path) -> None:
    clock = FakeClock(start_seconds=NOW_SECONDS)
    turn = [0]

    def page(_: str) -> bytes:
        turn[0] += 1
        return ok(b"".join(b'a{id="%d"} 1\n' % (at + 100 * turn[0]) for at in range(100)))

    with serving(page) as pages, MetricsStore.open(tmp_path / "store", clock=clock) as store:
        intake = Intake(store, limits=IngestLimits(series_per_client=250), clock=clock)
        scrape = TargetScrape(Target(url=pages.url, job="j"), into(intake), clock=clock)
        for _ in range(10):
            scrape.turn()
            clock.advance(1.0)
        assert store.stats().num_series == 250
        assert intake.totals["scrape", "over_the_series_limit"] > 0
        with serving(ok(b"other 1\n")) as others:
            TargetScrape(Target(url=others.url, job="k"), into(intake), clock=clock).turn()
        assert list(store.select([Matcher("__name__", "=", "other")], 0, 1 << 60))


def test_what_we_expose_ourselves_is_read_the_same_in_both_formats() -> None:
    found: list[Family] = [family("jobs", "counter", "Jobs.", ({"q": "é\n"}, 3.0), ({}, math.inf))]
    exporter = Exporter(lambda: found)
    exporter.start()
    try:
        kept = Kept()
        target = Target(url=f"http://127.0.0.1:{exporter.port}/metrics", job="j", instance="i")
        TargetScrape(target, kept, clock=FakeClock(start_seconds=1.0)).turn()
        openmetrics = kept.page()
        plain = httpx.get(target.url, trust_env=False).content
    finally:
        exporter.close()
    with serving(ok(plain)) as pages:
        scrape_of(pages, kept).turn()
    assert kept.page() == openmetrics
    assert sorted(openmetrics.values()) == [3.0, math.inf]


@pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed")
def test_a_page_of_prometheus_gives_the_samples_that_prometheus_scrapes(tmp_path: Path) -> None:
    with serving(b"HTTP/1.1 503 Not yet\r\nContent-Length: 0\r\n\r\n") as pages:
        (tmp_path / "prometheus.yml").write_text(
            "global: {scrape_interval: 250ms, scrape_timeout: 250ms}\nscrape_configs:\n  - job_name: j\n"
            f'    static_configs: [{{targets: ["127.0.0.1:{pages.port}"]}}]\n'
        )
        with prometheus(tmp_path) as url:
            page = httpx.get(f"{url}/metrics", trust_env=False)  # its own, which then stands still
            pages.answer = ok(page.content, kind=page.headers["Content-Type"])

            def ask(query: str) -> list[Any]:
                asked = httpx.get(f"{url}/api/v1/query", params={"query": query}, trust_env=False)
                rows: list[Any] = asked.json()["data"]["result"]
                return rows

            wait_for(lambda: bool(ask('up{job="j"} == 1')) and len(ask('{job="j"}')) > 100)
            theirs = {
                tuple(sorted(row["metric"].items())): float(row["value"][1])
                for row in ask('{job="j",__name__!~"up|scrape_.*"}')
            }
            (num_scraped,) = ask("scrape_samples_scraped")
            kept = Kept()
            target = Target(url=pages.url, job="j")
            scrape = TargetScrape(target, kept, clock=SystemClock())
            scrape.turn()
    ours = {each.series.labels: each.value for each in kept.samples if each.series.name not in REPORTS}
    assert len(ours) > 100
    assert ours.keys() == theirs.keys()
    assert list(ours.values()) == pytest.approx([theirs[key] for key in ours], rel=0, abs=0, nan_ok=True)
    told = {each.series.name: each.value for each in kept.samples}
    assert told["scrape_samples_scraped"] == float(num_scraped["value"][1])
