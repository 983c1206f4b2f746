from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from leptonai.core.clock import FakeClock
from leptonai.core.errors import InputError
from leptonai.launch.registry import RunRegistry, is_alive, open_registry, process_identity


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(start_seconds=100.0)


@pytest.fixture
def registry(tmp_path: Path, clock: FakeClock) -> Iterator[RunRegistry]:
    with open_registry(tmp_path / "home", clock=clock) as opened:
        yield opened


def register(registry: RunRegistry, run_id: str, *, path: str = "", pid: int | None = None) -> None:
    where = Path(path or f"/runs/{run_id}")
    registry.register(run_id=run_id, path=where, task="digits", num_workers=2, pid=pid or os.getpid())


def test_a_run_is_running_then_done_with_its_metrics(registry: RunRegistry, clock: FakeClock) -> None:
    register(registry, "a")
    assert [run.status for run in registry.list()] == ["running"]
    clock.advance(5.0)
    registry.finish("a", status="done", step=7, metrics={"accuracy": 0.5})
    (run,) = registry.list()
    assert (run.status, run.step, run.metrics) == ("done", 7, {"accuracy": 0.5})
    assert (run.started_seconds, run.ended_seconds) == (100.0, 105.0)
    assert (run.task, run.num_workers, run.path) == ("digits", 2, Path("/runs/a"))


def test_the_newest_run_comes_first(registry: RunRegistry, clock: FakeClock) -> None:
    for name in ("old", "middle", "new"):
        register(registry, name)
        clock.advance(1.0)
    assert [run.run_id for run in registry.list()] == ["new", "middle", "old"]


def test_a_run_whose_launcher_died_is_lost(registry: RunRegistry) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as launcher:
        register(registry, "a", pid=launcher.pid)
        assert registry.list()[0].status == "running"
        launcher.kill()
    assert registry.list()[0].status == "lost"


def test_a_zombie_does_not_count_as_alive() -> None:
    launcher = subprocess.Popen([sys.executable, "-c", "pass"], stdout=subprocess.PIPE)
    identity = process_identity(launcher.pid)
    assert launcher.stdout is not None
    launcher.stdout.read()  # returns when the process has closed its end, that is, when it exits
    os.waitid(os.P_PID, launcher.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(identity)
    launcher.stdout.close()
    launcher.wait()


def test_another_process_under_the_same_number_does_not_count() -> None:
    boot, pid, start = process_identity(os.getpid()).split()
    assert is_alive(f"{boot} {pid} {start}")
    assert not is_alive(f"{boot} {pid} {int(start) + 1}")
    assert not is_alive(f"0{boot[1:]}0 {pid} {start}")


def test_a_run_that_starts_again_replaces_its_row(registry: RunRegistry, clock: FakeClock) -> None:
    register(registry, "a")
    registry.finish("a", status="failed", step=3, metrics={})
    clock.advance(1.0)
    register(registry, "a")
    (run,) = registry.list()
    assert (run.status, run.ended_seconds) == ("running", None)


def test_runs_of_one_name_in_two_places_both_stay(registry: RunRegistry, clock: FakeClock) -> None:
    register(registry, "a", path="/here/a")
    clock.advance(1.0)
    register(registry, "a", path="/there/a")
    registry.finish("a", status="done", step=1, metrics={})
    assert [(str(run.path), run.status) for run in registry.list()] == [
        ("/there/a", "done"),
        ("/here/a", "running"),
    ]
    with pytest.raises(InputError, match="'a' could mean 2 runs, such as /there/a, /here/a"):
        registry.find("a")


def test_a_run_is_found_by_the_beginning_of_its_name_and_an_exact_name_wins(registry: RunRegistry) -> None:
    for name in ("digits", "digits-2", "words"):
        register(registry, name)
    assert registry.find("w").run_id == "words"
    assert registry.find("digits").run_id == "digits"
    with pytest.raises(InputError, match="could mean 2 runs"):
        registry.find("dig")
    with pytest.raises(InputError, match="no run is called 'x'"):
        registry.find("x")


def test_finishing_an_unknown_run_is_an_error(registry: RunRegistry) -> None:
    with pytest.raises(InputError, match="not in the register"):
        registry.finish("never", status="done", step=1, metrics={})


def test_the_register_outlives_the_handle(tmp_path: Path) -> None:
    with open_registry(tmp_path) as first:
        register(first, "a")
    with open_registry(tmp_path) as second:
        assert [run.run_id for run in second.list()] == ["a"]


def test_a_home_that_cannot_be_made_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"), open_registry(tmp_path / "file" / "home"):
        pass
