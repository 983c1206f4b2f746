"""The contestants of the parameter-server benchmark do the work they claim to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks.certificates import make_certificates
from benchmarks.figures import Options
from benchmarks.harness import SAME_FOR_ALL, Contestant
from benchmarks.parameter_server_work import PARTS, WorkNotDone, batches, check, expected
from benchmarks.progress import Run, Unmeasured
from benchmarks.rounds import Rounds, from_rounds, read_words, seconds_per_round

from benchmarks import parameter_server

ROOT = Path(__file__).resolve().parents[2]
# One of each kind: importing a framework in a process of its own takes seconds, and the floors are tried below.
TRIED = (
    parameter_server.COPIES,
    parameter_server.RAW,
    parameter_server.FRAMED,
    parameter_server.TLS,
    parameter_server.TABLE_SHM,
    parameter_server.TABLE_TCP,
    parameter_server.RPC,
)


def contestants() -> list[tuple[str, Contestant]]:
    options = Options(num_runs=1, only=(), quick=True, as_json=True)
    return [(of.name, each) for of in parameter_server.build(options) for each in of.contestants]


def test_parameters_that_missed_a_round_are_found() -> None:
    check(np.full(64, expected(3), np.float32), 3)
    with pytest.raises(WorkNotDone):
        check(np.full(64, expected(2), np.float32), 3)


def test_rounds_are_read_back_with_their_median(tmp_path: Path) -> None:
    progress = from_rounds(['{"seconds": 1.0}', '{"seconds": 5.0}', '{"seconds": 2.0}'])
    run = Run(contestant="x", started_at_seconds=0.0, ended_at_seconds=9.0, progress=progress)
    assert seconds_per_round(run) == 2.0
    with pytest.raises(Unmeasured):
        from_rounds([])


def test_batches_are_the_same_for_all() -> None:
    first, again = batches(1000, 2), batches(1000, 3)
    assert [batch.tolist() for batch in first] == [batch.tolist() for batch in again[:2]]


@pytest.mark.parametrize("part", ["memcpy", "adam", "embedding"])
def test_each_floor_reports_its_rounds(part: str, tmp_path: Path) -> None:
    words = [part, "--report", str(tmp_path / "r"), "--elements", "4800", "--rows", "5000", "--rounds", "2"]
    asked = read_words(tuple(PARTS), words)
    assert asked == Rounds(part=part, report=tmp_path / "r", elements=4800, rows=5000, warm=2, rounds=2)
    PARTS[part](asked)
    assert len(from_rounds((tmp_path / "r").read_text().splitlines()).marks) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", TRIED)
def test_contestants_do_their_rounds(name: str, tmp_path: Path) -> None:
    play(next(each for _, each in contestants() if each.name == name), tmp_path)


def play(contestant: Contestant, folder: Path) -> None:
    words = list(contestant.command(folder, 0))
    words[words.index("--warm") + 1], words[words.index("--rounds") + 1] = "1", "2"
    variables = {**os.environ, **SAME_FOR_ALL, **contestant.environment, "TMPDIR": str(folder)}
    ended = subprocess.run(
        words, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=100, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert len(contestant.read(folder).marks) == 2


def test_certificates_name_loopback(tmp_path: Path) -> None:
    made = make_certificates(tmp_path)
    words = ["openssl", "verify", "-CAfile", str(made.authority), "-verify_ip", "127.0.0.1"]
    ended = subprocess.run([*words, str(made.certificate)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_every_command_runs_a_module_that_is_there() -> None:
    for _, each in contestants():
        if each.name != parameter_server.RAY:  # naming its command would install it
            words = list(each.command(Path(), 0))
            assert words[0] == sys.executable
            assert (ROOT / f"{words[2].replace('.', '/')}.py").is_file()
