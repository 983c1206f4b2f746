"""The launcher as a process of its own: nothing outlives it, and nothing listens beyond loopback."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.launch.conftest import TOY

DEADLINE_SECONDS = 60.0


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Poll for a condition of another process; a test that never sees it fails."""
    end = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.02)


@contextmanager
def launched(folder: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """`lepton train` on a job of many slow steps, once its workers train."""
    job = folder / "slow.py"
    job.write_text(
        f"import sys\nsys.path.insert(0, {str(TOY.parent)!r})\nfrom toy import *\n"
        "job = toy(pause=0.02, epochs=None, steps=5000)\n"
    )
    cluster = folder / "cluster.yaml"
    cluster.write_text("nodes:\n  - name: here\nworkers: 2\n")
    run_dir = folder / "run"
    command = [sys.executable, "-m", "leptonai.cli", "train", str(job), "--cluster", str(cluster)]
    command += ["--run-dir", str(run_dir), "--no-autotune", "--home", str(folder / "home")]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        journal = run_dir / "events.jsonl"
        wait_until(
            lambda: launcher.poll() is not None or (journal.exists() and "step_done" in journal.read_text()),
            "it trains",
        )
        assert launcher.poll() is None, launcher.stdout.read() if launcher.stdout else ""
        yield launcher, run_dir
    finally:
        if launcher.poll() is None:
            launcher.kill()
        launcher.communicate()


def family(launcher: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(launcher.pid).children(recursive=True)


def gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_orphan_stays_however_the_launcher_ends(tmp_path: Path, number: signal.Signals) -> None:
    with launched(tmp_path) as (launcher, _run_dir):
        children = family(launcher)
        assert len(children) == 3  # the zygote and two workers
        os.kill(launcher.pid, number)
        wait_until(lambda: launcher.poll() is not None, "the launcher has ended")
        wait_until(lambda: gone(children), "the workers are gone")


def test_ctrl_c_saves_and_says_so(tmp_path: Path) -> None:
    with launched(tmp_path) as (launcher, run_dir):
        os.kill(launcher.pid, signal.SIGINT)
        output, _ = launcher.communicate(timeout=DEADLINE_SECONDS)
    assert launcher.returncode == 130, output
    text = (run_dir / "events.jsonl").read_text()
    step = int(re.findall(r'"step":\s*(\d+)', text.splitlines()[-1])[0])
    assert (run_dir / "checkpoints" / f"step-{step:08d}").is_dir()
    assert "Traceback" not in output


def test_a_killed_zygote_takes_the_workers_with_it(tmp_path: Path) -> None:
    with launched(tmp_path) as (launcher, _run_dir):
        children = family(launcher)
        zygote = next(
            child for child in children if "zygote" in " ".join(child.cmdline()) and child.children()
        )
        zygote.kill()
        output, _ = launcher.communicate(timeout=DEADLINE_SECONDS)
        assert launcher.returncode == 4, output
        wait_until(lambda: gone(children), "the workers are gone")


def test_every_socket_of_a_run_listens_on_loopback_only(tmp_path: Path) -> None:
    with launched(tmp_path) as (launcher, _run_dir):
        listening = [
            connection.laddr
            for process in [psutil.Process(launcher.pid), *family(launcher)]
            for connection in process.net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN
        ]
    assert listening  # gloo's; an empty list would prove nothing
    assert {address.ip for address in listening} <= {"127.0.0.1", "::1"}
