"""The agent as a real process, and inside a run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from leptonai.core.clock import SystemClock
from leptonai.core.errors import InputError
from leptonai.core.events import Event, RunStarted, StepDone
from leptonai.operations.agent.__main__ import listen_address, parse
from leptonai.operations.agent.loop import Sampler
from leptonai.operations.agent.process import AgentSettings
from leptonai.operations.agent.run_agent import RunAgent
from leptonai.operations.agent.spool import Spool, parcels
from leptonai.operations.ingest.access import Access
from leptonai.operations.ingest.snappy import unpack
from tests.operations.agent.serving import Scripted, real_collector, until, values

STEP = StepDone(
    at_seconds=5.0, step=4, epoch=1, loss=0.5, examples=64, seconds=2.0, learning_rate=0.1,
    rank_compute_seconds=(0.1, 0.2), rank_exchange_seconds=(0.05, 0.01),
)  # fmt: skip


@contextmanager
def agent(*words: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The real process; killed where a test did not end it."""
    with (folder / "said").open("w") as said, subprocess.Popen(
        [sys.executable, "-m", "leptonai.operations.agent", "--node", "a", *words], stderr=said, text=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(10.0)


def said(folder: Path) -> str:
    return (folder / "said").read_text()


def memory_of(process: subprocess.Popen[str]) -> float:
    """Resident megabytes."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_a_process_samples_ships_and_says_goodbye(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    access = Access(read_token="r", write_token="secret")
    with real_collector(tmp_path / "store", access=access, clock=SystemClock()) as (url, store):
        words = ("--collector", url, "--token-file", str(tmp_path / "token"), "--spool", str(tmp_path / "spool"),
                 "--interval", "0.2", "--listen", "127.0.0.1:0")  # fmt: skip
        with agent(*words, folder=tmp_path) as process:
            until(lambda: "without" in said(tmp_path))
            address = re.search(r"metrics at (\S+)", said(tmp_path))
            assert address is not None
            until(lambda: 'lepton_agent_up{node="a"} 1.0' in httpx.get(address[1], trust_env=False).text)
            assert memory_of(process) < 60.0
            process.send_signal(signal.SIGTERM)
            assert process.wait(15.0) == 0
        found = values(store)
    ups = found['lepton_agent_up{node="a"}']
    assert ups[-1] == 0.0
    assert set(ups[:-1]) == {1.0}
    assert found['node_memory_MemTotal_bytes{node="a"}'][0] > 1e6
    assert found['lepton_agent_dropped_items_total{node="a",reason="full"}'][-1] == 0
    assert "secret" not in said(tmp_path)
    spool = Spool(tmp_path / "spool")
    assert spool.first() is None
    spool.close()


def test_a_process_whose_collector_is_away_keeps_what_it_took(tmp_path: Path) -> None:
    words = ("--collector", "http://127.0.0.1:9", "--spool", str(tmp_path / "spool"), "--interval", "0.1")
    with agent(*words, folder=tmp_path) as process:
        until(lambda: "without" in said(tmp_path))
        process.send_signal(signal.SIGINT)
        assert process.wait(15.0) == 0
    assert "nothing reaches the collector at http://127.0.0.1:9" in said(tmp_path)
    kept = [each for path in (tmp_path / "spool").glob("*.spool") for each in parcels(path.read_bytes())]
    assert sum(each.num_items for each in kept if each.kind == "samples") > 20


def test_a_process_that_is_killed_is_gone_on_with(tmp_path: Path) -> None:
    words = ("--collector", "http://127.0.0.1:9", "--spool", str(tmp_path / "spool"), "--interval", "0.1")
    with agent(*words, folder=tmp_path) as process:
        until(lambda: any(path.stat().st_size for path in (tmp_path / "spool").glob("*.spool")))
        process.kill()
    with Scripted(204) as server:
        words = ("--collector", server.url, "--spool", str(tmp_path / "spool"), "--interval", "0.1")
        with agent(*words, folder=tmp_path) as process:
            until(lambda: len(server.requests) > 0)
            process.terminate()
            assert process.wait(15.0) == 0
    assert b"lepton_agent_up" in unpack(server.requests[0][2], limit_bytes=1 << 24)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "nobody would get the samples"),
        (("--collector", "nowhere"), "address cannot be used"),
        (("--listen", "9100"), "HOST:PORT"),
        (("--listen", "0.0.0.0:0"), "needs a token"),
        (("--listen", "127.0.0.1:0", "--interval", "0"), "interval"),
        (("--spool", "/proc/none/spool"), "cannot be written to"),
    ],
)
def test_wrong_words_end_with_a_sentence(tmp_path: Path, words: tuple[str, ...], sentence: str) -> None:
    with agent(*words, folder=tmp_path) as process:
        assert process.wait(15.0) == 2
    text = said(tmp_path)
    assert sentence in text
    assert "Traceback" not in text


def test_the_process_imports_nothing_heavy() -> None:
    program = (
        "import sys, leptonai.operations.agent.__main__, leptonai.operations.agent.run_agent;"
        "heavy = {'numpy', 'torch', 'typer', 'rich', 'pydantic', 'sqlalchemy', 'starlette', 'scipy', 'psutil'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_words_become_settings(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("x")
    words = ["--collector", "http://127.0.0.1:1", "--token-file", str(tmp_path / "t"), "--listen", "[::1]:7",
             "--node", "n", "--interval", "2.5", "--per-core"]  # fmt: skip
    found = parse(words)
    assert (found.node, found.listen, found.interval_seconds, found.per_core) == ("n", ("::1", 7), 2.5, True)
    assert str(found.collector) == "http://127.0.0.1:1"
    for text in ("", "host:", ":9", "host:x", "host:70000", "host"):
        with pytest.raises(InputError):
            listen_address(text)
    for interval in (0.0, -1.0, 301.0, float("nan"), float("inf")):
        with pytest.raises(InputError):
            AgentSettings(node="a", spool=tmp_path, interval_seconds=interval)


class Told(list[str]):
    """Sentences, and an event once there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.is_told = threading.Event()

    def __call__(self, sentence: str) -> None:
        self.append(sentence)
        self.is_told.set()


def test_a_run_is_sampled_and_shipped(tmp_path: Path) -> None:
    with real_collector(tmp_path / "store", clock=SystemClock()) as (url, store):
        told = Told()
        with RunAgent(
            tmp_path / "spool", url, None, "r1", node="a", on_trouble=told, interval_seconds=0.1
        ) as run:
            run(
                RunStarted(
                    at_seconds=1.0, run_id="r1", num_workers=2, total_steps=9, first_step=0, steps_per_epoch=3
                )
            )
            run(STEP)
            run.registry.gauge("lepton_run_queue_depth", 3.0, {"queue": "push"})
        run.close()
        found = values(store)
    labels = 'node="a"'
    assert found[f'lepton_run_loss{{{labels},run_id="r1"}}'][-1] == 0.5
    assert found[f'lepton_rank_compute_seconds{{{labels},rank="1",run_id="r1"}}'][-1] == 0.2
    assert found[f'lepton_run_queue_depth{{{labels},queue="push",run_id="r1"}}'][-1] == 3.0
    assert found[f'lepton_agent_up{{{labels},run_id="r1"}}'][-1] == 0.0
    assert f'node_memory_MemFree_bytes{{{labels},run_id="r1"}}' in found
    assert not any(name.startswith("process_") for name in found)
    assert (told, run.num_failures) == ([], 0)


def test_without_a_collector_the_latest_stays_in_the_runs_folder(tmp_path: Path) -> None:
    with RunAgent(tmp_path / "spool", None, None, "r1", interval_seconds=0.1) as run:
        run(STEP)
    kept = [each for path in (tmp_path / "spool").glob("*.spool") for each in parcels(path.read_bytes())]
    assert b"lepton_run_loss" in unpack(kept[-1].body, limit_bytes=1 << 24)


def test_whatever_fails_is_told_once_and_ends_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    told = Told()
    with RunAgent(
        tmp_path / "file", "http://x:1", tmp_path / "none", "r", on_trouble=told, interval_seconds=0.1
    ) as run:
        for _ in range(3):
            run("no event")  # type: ignore[arg-type]
            run(StepDone(at_seconds=1.0, step=1, epoch=1, loss=None, examples=1, seconds=1.0, learning_rate=0.1,
                         phases={"": 1.0}, bytes_sent=-5))  # fmt: skip
        until(lambda: len(told) >= 3)
    sentences = sorted(each.partition(":")[0] for each in told)
    assert sentences == [
        "an event could not be counted",
        "metrics are kept in memory only",
        "metrics are not sent",
    ]
    assert run.num_failures == 5


def test_a_loop_that_breaks_ends_the_metrics_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a fault of our own")

    monkeypatch.setattr(Sampler, "tick", broken)
    told = Told()
    with RunAgent(None, None, None, "r", on_trouble=told) as run:
        assert told.is_told.wait(10.0)
        run(STEP)
    assert told == ["the metrics of this run have ended: RuntimeError: a fault of our own"]


def test_a_listener_that_breaks_ends_nothing(tmp_path: Path) -> None:
    def listener(sentence: str) -> None:
        raise RuntimeError(sentence)

    run = RunAgent(None, "nonsense", None, "r", on_trouble=listener, interval_seconds=0.1)
    run.close()  # before it was started
    run.start()
    run.close()
    assert run.num_failures == 1


def test_a_run_whose_collector_is_away_ends_in_time(tmp_path: Path) -> None:
    told = Told()
    began = time.monotonic()
    with RunAgent(tmp_path / "spool", "http://127.0.0.1:9", None, "r", on_trouble=told, interval_seconds=0.1):
        pass
    assert time.monotonic() - began < 8.0
    assert len(told) == 1
    assert not [each for each in threading.enumerate() if each.name.startswith("lepton-agent")]


def test_a_run_keeps_within_its_space(tmp_path: Path) -> None:
    with RunAgent(tmp_path / "spool", None, None, "r", interval_seconds=0.02, spool_bytes=16_384) as run:
        for rank in range(400):
            run.registry.gauge("mine", 1.0, {"rank": str(rank)})
        until(lambda: len(list((tmp_path / "spool").glob("*.spool"))) > 0)
    assert sum(path.stat().st_size for path in (tmp_path / "spool").iterdir()) <= 2 * 16_384


def test_every_kind_of_event_is_taken(tmp_path: Path) -> None:
    run = RunAgent(None, None, None, "r")
    for kind in Event.__subclasses__():
        values_of = {"at_seconds": 1.0}
        try:
            event = kind(**values_of)
        except TypeError:  # it needs more than a time
            continue
        run(event)
    assert run.num_failures == 0
    json.dumps(run.registry.values())
