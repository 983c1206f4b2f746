"""Real runs through the command: orders and Ctrl-C while they go on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from leptonai.launch.rundir import open_run
from tests.cli.conftest import Said

pytestmark = pytest.mark.slow
ENDLESS = ("--set", "steps=10000000", "--no-autotune", "--run-dir", "runs/live")


@contextmanager
def training(stage: Path) -> Iterator[subprocess.Popen[str]]:
    """A run that takes steps and will not end by itself."""
    words = [
        sys.executable,
        "-c",
        "from leptonai.cli import main; main()",
        "train",
        "tiny.py",
        "-c",
        "two.yaml",
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*words, *ENDLESS], cwd=stage, text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if "step " in line:
                    break
            assert said, "it ended without a word"
            assert "step " in said[-1], "".join(said)
            yield process
        finally:
            process.kill()


def test_a_live_run_saves_and_stops_on_order(stage: Path, lepton: Callable[..., Said]) -> None:
    with training(stage) as process:
        assert json.loads(lepton("runs", "show", "live", "--json").out)["status"] == "running"
        rows = {row["run_id"]: row for row in json.loads(lepton("runs", "list", "--json").out)}
        assert rows["live"]["status"] == "running"
        assert lepton("runs", "save", "live").code == 0
        assert lepton("runs", "stop", "live").code == 0
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "order: save" in err
    assert "order: halt" in err
    assert "stopped after step" in out
    result = open_run(stage / "runs" / "live").result()
    assert result["status"] == "stopped"
    assert json.loads(lepton("runs", "show", "live", "--json").out)["status"] == "stopped"


def test_ctrl_c_saves_ends_every_worker_and_exits_130(stage: Path, lepton: Callable[..., Said]) -> None:
    with training(stage) as process:
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 2
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted after step" in out
    assert [each for each in family if each.is_running() and each.status() != psutil.STATUS_ZOMBIE] == []
    said = lepton("export", "live", "--to", "weights.safetensors", "--json")
    assert said.code == 0
    assert json.loads(said.out)["step"] == open_run(stage / "runs" / "live").summary().step
