"""Runs contestants side by side, in turns, and gathers what each reported."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.memory import PeakMemory
from benchmarks.progress import Progress, Run, Unmeasured

ROOT = Path(__file__).resolve().parents[1]
RUN_LIMIT_SECONDS = 1800.0
SAME_FOR_ALL = {
    "PYTHONPATH": str(ROOT),
    "GLOO_SOCKET_IFNAME": "lo",
    "CUDA_VISIBLE_DEVICES": "",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
"""Environment of every contestant: this tree importable, exchange on loopback, no GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """One way to do the work.

    Args:
        name: as shown in tables.
        command: argv for a run that may use the given empty folder; round numbers start at 0.
        read: what the run reported, from that folder, once the command has ended well.
        environment: variables beside :data:`SAME_FOR_ALL`.
        directory: where the command runs, given the run's folder.
        notes: sentences about the finished run, from its folder (what was chosen, say).
    """

    name: str
    command: Callable[[Path, int], Sequence[str]]
    read: Callable[[Path], Progress]
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: Callable[[Path], Path] = lambda folder: ROOT
    notes: Callable[[Path], Sequence[str]] = lambda folder: ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """Contestants that do the same work in turns (A B C A B C ...), so that a slow minute hits all alike.

    ``memory`` samples the whole process tree while it runs; speed is then not read from it.
    """

    name: str
    contestants: tuple[Contestant, ...]
    memory: bool = False

    def only(self, names: frozenset[str]) -> Contest:
        """The same contest among those of these names."""
        chosen = tuple(each for each in self.contestants if each.name in names)
        return Contest(name=self.name, contestants=chosen, memory=self.memory)


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Finished runs by contest and contestant, and why some contestant has none."""

    runs: Mapping[str, Mapping[str, Sequence[Run]]]
    failures: Mapping[str, str] = field(default_factory=dict)

    def of(self, contest: str, contestant: str) -> Sequence[Run]:
        """Runs of one contestant in one contest.

        Raises:
            Unmeasured: there are none.
        """
        found = self.runs.get(contest, {}).get(contestant, ())
        if not found:
            raise Unmeasured(self.failures.get(contestant, f"{contestant} did not run in {contest}"))
        return found


class ContestantFailed(Exception):
    """A contestant's command ended badly; the text holds the end of its output."""


def hold(contests: Sequence[Contest], *, num_runs: int) -> Results:
    """Run every contest; a contestant that fails once sits out the rest and is named in ``failures``."""
    runs: dict[str, dict[str, list[Run]]] = {}
    failures: dict[str, str] = {}
    for contest in contests:
        of_contest = runs.setdefault(contest.name, {})
        for turn, contestant in turns(contest.contestants, num_runs):
            if contestant.name in failures:
                continue
            _say(f"{contest.name}: {contestant.name} {turn + 1}/{num_runs}")
            try:
                run = run_once(contestant, turn=turn, sample_memory=contest.memory)
                of_contest.setdefault(contestant.name, []).append(run)
            except (ContestantFailed, Unmeasured) as failure:
                failures[contestant.name] = str(failure)
                _say(str(failure))
    return Results(runs=runs, failures=failures)


def turns(contestants: Sequence[Contestant], num_runs: int) -> list[tuple[int, Contestant]]:
    """The order of play: every contestant once, then every one again."""
    return [(turn, contestant) for turn in range(num_runs) for contestant in contestants]


def run_once(contestant: Contestant, *, turn: int, sample_memory: bool = False) -> Run:
    """Start the contestant's command, wait for it, read its report; nothing of it is left behind.

    Raises:
        ContestantFailed: it ended with another exit code than 0, or took longer than half an hour.
        Unmeasured: it ended well but reported nothing.
    """
    # Short, because Ray's Unix sockets lie below it and their paths may have no more than 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="contest-"))
    try:
        argv = list(contestant.command(folder, turn))
        (folder / "t").mkdir()
        variables = {**os.environ, **SAME_FOR_ALL, "TMPDIR": str(folder / "t"), **contestant.environment}
        started, peak = _run(
            argv, folder / "output.txt", variables, contestant.directory(folder), sample_memory
        )
        return Run(
            contestant=contestant.name,
            started_at_seconds=started,
            ended_at_seconds=time.time(),
            progress=contestant.read(folder),
            peak_bytes=peak,
            notes=tuple(contestant.notes(folder)),
        )
    except FileNotFoundError as error:
        raise ContestantFailed(f"{contestant.name}: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(
    argv: list[str], output: Path, variables: Mapping[str, str], directory: Path, sample_memory: bool
) -> tuple[float, int | None]:
    """When the command started, and the peak of its memory if that was asked for."""
    with output.open("wb") as sink:
        started = time.time()
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env=variables,
            cwd=directory,
            start_new_session=True,
        )
        try:
            with PeakMemory(process.pid) if sample_memory else nullcontext() as memory:
                code = process.wait(timeout=RUN_LIMIT_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise ContestantFailed(f"{argv}: still running after {RUN_LIMIT_SECONDS:.0f} s") from error
        finally:
            end_tree(process)
    if code != 0:
        tail = output.read_text(errors="replace")[-3000:]
        raise ContestantFailed(f"{' '.join(argv)}\nended with exit code {code}:\n{tail}")
    return started, None if memory is None else memory.peak_bytes


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that we started as a session leader, with all that still runs below or beside it."""
    below: list[psutil.Process] = []
    if process.poll() is None:
        below = psutil.Process(process.pid).children(recursive=True)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for each in below:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
