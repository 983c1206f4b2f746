"""A real Prometheus scrapes us and writes to us: the same samples, and the same answers to the same questions."""

from __future__ import annotations

import math
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from leptonai.core.clock import SystemClock
from leptonai.operations.ingest.access import Access
from leptonai.operations.ingest.exposition import Family, family
from leptonai.operations.ingest.intake import Intake
from leptonai.operations.ingest.limits import IngestLimits
from leptonai.operations.ingest.server import IngestServer, make_app
from leptonai.operations.store import MetricsStore

PROMETHEUS = shutil.which("prometheus")
LONGEST_SECONDS = 40.0
NUM_SAMPLES = 20
CONFIG = """
global: {{scrape_interval: 250ms, scrape_timeout: 250ms}}
scrape_configs:
  - job_name: ours
    static_configs: [{{targets: ["127.0.0.1:{ours}"]}}]
remote_write:
  - url: http://127.0.0.1:{ours}/api/v1/write
    queue_config: {{batch_send_deadline: 100ms}}
"""

pytestmark = pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed")


class Metrics:
    """Values that change at every scrape: a counter that starts again, gauges, a histogram."""

    def __init__(self) -> None:
        self.turn = 0

    def __call__(self) -> list[Family]:
        self.turn += 1
        turn = self.turn
        counts = [("0.1", turn), ("1", 3 * turn), ("+Inf", 4 * turn)]
        return [
            family("turns", "counter", "scrapes", ({}, float(turn % 9))),
            family("wave", "gauge", "up and down", *(({"node": node}, shift + math.sin(turn))
                                                    for node, shift in (("a", 0.0), ("b", 5.0)))),
            family("took_bucket", "gauge", "a histogram's buckets", *(({"le": le}, float(n)) for le, n in counts)),
        ]  # fmt: skip


class Both:
    """Prometheus and ourselves, with the same samples up to ``until``."""

    def __init__(self, prometheus: str, ours: str) -> None:
        self.urls = (prometheus, ours)
        self.until = 0.0

    def ask(self, path: str, **words: str | float) -> tuple[Any, Any]:
        """The ``data`` of both answers."""
        found = [httpx.get(f"{url}{path}", params=words, trust_env=False, timeout=10.0) for url in self.urls]
        assert [each.status_code for each in found] == [200, 200], [each.text for each in found]
        return found[0].json()["data"], found[1].json()["data"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + LONGEST_SECONDS
    while not what():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("prometheus")
    clock = SystemClock()
    with MetricsStore.open(folder / "store", clock=clock) as store:
        app = make_app(
            Intake(store, limits=IngestLimits(), clock=clock), access=Access(), more_metrics=Metrics()
        )
        with IngestServer(app, access=Access()) as server:
            (folder / "prometheus.yml").write_text(CONFIG.format(ours=server.url.rsplit(":", 1)[1]))
            with prometheus(folder) as url:
                found = Both(url, server.url)

                def enough() -> bool:
                    data = httpx.get(
                        f"{server.url}/api/v1/query", params={"query": "turns_total[1h]"}, trust_env=False
                    ).json()["data"]["result"]
                    if not data or len(data[0]["values"]) < NUM_SAMPLES:
                        return False
                    found.until = float(data[0]["values"][NUM_SAMPLES - 1][0])
                    return True

                wait_for(enough)
                yield found


@contextmanager
def prometheus(folder: Path) -> Iterator[str]:
    """A real one, set up by ``prometheus.yml`` in a folder; its address."""
    port = free_port()
    words = [
        str(PROMETHEUS), f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
    ]  # fmt: skip
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: is_ready(port))
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20.0)


def is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/-/ready", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def numbers(result: Any) -> dict[str, list[tuple[float, float]]]:
    """Samples by labels, whatever the kind of answer."""
    if not isinstance(result, list) or (result and not isinstance(result[0], dict)):
        return {"": [(float(result[0]), float(result[1]))]}
    return {
        str(sorted(each["metric"].items())): [
            (float(at), float(value)) for at, value in each.get("values", [each.get("value")])
        ]
        for each in result
    }


def test_every_sample_that_was_scraped_was_written(both: Both) -> None:
    theirs, ours = both.ask("/api/v1/query", query='{job="ours"}[1h]', time=both.until)
    theirs, ours = numbers(theirs["result"]), numbers(ours["result"])
    assert ours == theirs
    assert sum(map(len, ours.values())) > 10 * NUM_SAMPLES


@pytest.mark.parametrize(
    "query",
    [
        "turns_total", "wave", 'wave{node="a"}', 'wave{node=~"a|b"} offset 1s', "up", "wave * 2 + 1", "-wave",
        "rate(turns_total[3s])", "irate(turns_total[3s])", "increase(turns_total[2s])", "delta(wave[2s])",
        "avg_over_time(wave[2s])", "max_over_time(wave[2s])", "min_over_time(wave[2s])", "sum_over_time(wave[2s])",
        "count_over_time(wave[2s])", "stddev_over_time(wave[2s])", "quantile_over_time(0.3, wave[2s])",
        "last_over_time(wave[2s])", "changes(turns_total[3s])", "resets(turns_total[4s])",
        "sum(wave)", "avg by (node) (wave)", "max without (node) (wave)", "count(wave)", "topk(1, wave)",
        "sum(rate(turns_total[3s])) / count(up)", "wave > 4.5", "wave > bool 4.5", "wave and wave > 0",
        "wave or turns_total", "wave unless wave > 0", "abs(wave)", "ceil(wave)", "clamp_max(wave, 0.5)",
        "histogram_quantile(0.5, sum by (le) (took_bucket))", "histogram_quantile(0.9, rate(took_bucket[3s]))",
        "scalar(up) + 1", "vector(3)", "1 + 2 * 3 ^ 2 % 5", "absent(nowhere)", "time() - timestamp(up)",
        'label_replace(wave, "host", "$1-x", "node", "(.*)")', "stddev(wave)", "quantile(0.4, wave)",
        "sort_desc(wave)", "wave * on(node) wave",
    ],
)  # fmt: skip
def test_the_same_questions_get_the_same_answers(both: Both, query: str) -> None:
    span = {"start": both.until - 4.0, "end": both.until, "step": 0.5}
    theirs, ours = both.ask("/api/v1/query_range", query=query, **span)
    assert ours["resultType"] == theirs["resultType"]
    expected, found = numbers(theirs["result"]), numbers(ours["result"])
    assert found.keys() == expected.keys()
    for labels, points in expected.items():
        assert [at for at, _ in found[labels]] == [at for at, _ in points]
        assert [value for _, value in found[labels]] == pytest.approx(
            [value for _, value in points], rel=1e-9, abs=1e-12, nan_ok=True
        )


def test_a_prometheus_that_reads_from_us_has_the_same_samples(both: Both, tmp_path: Path) -> None:
    config = f"remote_read: [{{url: '{both.urls[1]}/api/v1/read', read_recent: true}}]\n"
    (tmp_path / "prometheus.yml").write_text(config)
    with prometheus(tmp_path) as reader:
        readers = Both(reader, both.urls[1])
        for query in ("turns_total[1h]", 'wave{node="a"}[1h]', 'wave{node!~"a"}[1h]'):
            theirs, ours = readers.ask("/api/v1/query", query=query, time=both.until)
            assert numbers(theirs["result"]) == numbers(ours["result"])
            assert sum(map(len, numbers(ours["result"]).values())) >= NUM_SAMPLES - 1


def test_labels_and_series_are_the_same(both: Both) -> None:
    theirs, ours = both.ask("/api/v1/label/node/values")
    assert ours == theirs == ["a", "b"]
    theirs, ours = both.ask("/api/v1/series", **{"match[]": "wave"})
    assert sorted(map(str, map(sorted, (each.items() for each in ours)))) == sorted(
        map(str, map(sorted, (each.items() for each in theirs)))
    )


def test_our_page_is_clean_to_promtool(both: Both) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    page = httpx.get(f"{both.urls[1]}/metrics", trust_env=False).text
    done = subprocess.run(
        [promtool, "check", "metrics"], input=page, text=True, capture_output=True, timeout=20
    )
    assert (done.returncode, done.stderr) in ((0, ""), (3, done.stderr)), done.stderr
    assert "error" not in done.stderr
