"""The local engine by itself: real processes, no training."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from leptonai.compute.engines.base import Exited, Message, Report, Started, WorkerSpec
from leptonai.compute.engines.local import LocalEngine
from leptonai.compute.engines.wire import LineReader, encode


def play(channel: socket.socket, fds: list[int]) -> int:
    """What the workers of these tests do: as their assignment says."""
    reader = LineReader()

    def hear() -> dict[str, Any]:
        while (value := reader.next_value()) is None:
            reader.add(channel.recv(65536))
        return value

    assignment = hear()
    match assignment["play"]:
        case "greet":
            print("hello from", assignment["name"], flush=True)
            cores = sorted(os.sched_getaffinity(0))
            inherited = os.read(fds[0], 100).decode() if fds else ""
            channel.sendall(encode({"cores": cores, "inherited": inherited, "word": os.environ.get("WORD")}))
            return 0
        case "echo":
            channel.sendall(encode(hear()))
            return 0
        case "fail":
            raise RuntimeError("as told")
        case "family":
            child = os.fork()
            if child == 0:
                time.sleep(60)
            channel.sendall(encode({"child": child}))
            time.sleep(60)
            return 0
    return 5


@pytest.fixture
def engine() -> Iterator[LocalEngine]:
    started = LocalEngine(entry=f"{__name__}:play", preload=(__name__,))
    yield started
    started.close()


def spec(tmp_path: Path, name: str, play: str, **changes: object) -> WorkerSpec:
    assignment = {"play": play, "name": name}
    return WorkerSpec(name=name, assignment=assignment, log=tmp_path / f"{name}.log", **changes)  # type: ignore[arg-type]


def reports_until_exit(engine: LocalEngine, count: int = 1) -> list[Report]:
    found: list[Report] = []
    end = time.monotonic() + 60
    while sum(isinstance(report, Exited) for report in found) < count:
        assert time.monotonic() < end
        found += engine.poll(0.5)
    return found


def test_a_worker_gets_what_its_spec_says(engine: LocalEngine, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.write(write, b"from the parent")
    core = min(os.sched_getaffinity(0))
    engine.start(spec(tmp_path, "one", "greet", cores=(core,), environment={"WORD": "aleph"}, fds=(read,)))
    os.close(read), os.close(write)
    started, message, exited = reports_until_exit(engine)
    assert isinstance(started, Started)
    assert message == Message(
        name="one", values={"cores": [core], "inherited": "from the parent", "word": "aleph"}
    )
    assert exited == Exited(name="one", code=0)
    assert (tmp_path / "one.log").read_text() == "hello from one\n"


def test_values_go_both_ways(engine: LocalEngine, tmp_path: Path) -> None:
    engine.start(spec(tmp_path, "one", "echo"))
    while not engine.poll(0.5):
        pass
    engine.send("one", {"n": [1, 2.5, "é"]})
    assert Message(name="one", values={"n": [1, 2.5, "é"]}) in reports_until_exit(engine)


def test_an_exception_is_an_exit_status_and_lands_in_the_log(engine: LocalEngine, tmp_path: Path) -> None:
    engine.start(spec(tmp_path, "one", "fail"))
    assert reports_until_exit(engine)[-1] == Exited(name="one", code=70)
    assert "RuntimeError: as told" in (tmp_path / "one.log").read_text()


def test_stopping_the_workers_ends_their_children_too_and_the_engine_goes_on(
    engine: LocalEngine, tmp_path: Path
) -> None:
    engine.start(spec(tmp_path, "one", "family"))
    reports: list[Report] = []
    while not any(isinstance(report, Message) for report in reports):
        reports += engine.poll(0.5)
    pids = [report.pid for report in reports if isinstance(report, Started)]
    pids += [report.values["child"] for report in reports if isinstance(report, Message)]
    processes = [psutil.Process(pid) for pid in pids]
    engine.stop_workers()
    psutil.wait_procs(processes, timeout=10)
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)
    engine.start(spec(tmp_path, "two", "greet"))
    assert reports_until_exit(engine)[-1] == Exited(name="two", code=0)


def test_a_signal_reaches_the_worker_it_is_for(engine: LocalEngine, tmp_path: Path) -> None:
    engine.start(spec(tmp_path, "one", "family"))
    while not any(isinstance(report, Message) for report in engine.poll(0.5)):
        pass
    engine.signal("one", signal.SIGTERM)
    assert reports_until_exit(engine)[-1] == Exited(name="one", code=-signal.SIGTERM)


def test_a_module_that_cannot_be_preloaded_does_not_stop_the_engine(tmp_path: Path) -> None:
    engine = LocalEngine(entry=f"{__name__}:play", preload=("no_such_module", __name__))
    try:
        engine.start(spec(tmp_path, "one", "greet"))
        assert reports_until_exit(engine)[-1] == Exited(name="one", code=0)
    finally:
        engine.close()
