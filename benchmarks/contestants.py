"""The two kinds of contestant: a run of ``lepton train``, and a peer's program."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.harness import ROOT, Contestant
from benchmarks.progress import Progress, from_events, from_report

SettingsOf = Callable[[int], Sequence[str]]


def lepton(
    name: str,
    *,
    job: Path,
    cluster: Path,
    settings: SettingsOf,
    autotune: bool,
    environment: Mapping[str, str] | None = None,
) -> Contestant:
    """``lepton train JOB --cluster CLUSTER`` with ``key=value`` settings that may depend on the round."""

    def command(folder: Path, turn: int) -> list[str]:
        words = ["train", str(job), "--cluster", str(cluster), "--run-dir", str(folder / "run"), "--json"]
        words += ["--home", str(folder / "home")]
        words += [] if autotune else ["--no-autotune"]
        for setting in settings(turn):
            words += ["--set", setting]
        return [sys.executable, "-m", "leptonai.cli", *words]

    return Contestant(
        name=name, command=command, read=_read_events, environment=environment or {}, notes=_chosen
    )


def peer(
    name: str,
    *,
    module: str,
    python: Callable[[], Path],
    words: Callable[[int], Sequence[str]],
    num_processes: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Contestant:
    """A program of :mod:`benchmarks.peers`, started by torchrun when ``num_processes`` is given."""

    def command(folder: Path, turn: int) -> list[str]:
        start = ["-m"]
        if num_processes is not None:
            start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}", "-m"]
        report = ["--report", str(folder / "report.jsonl")]
        return [str(python()), *start, module, *report, *words(turn)]

    return Contestant(name=name, command=command, read=_read_report, environment=environment or {})


def own_python() -> Path:
    """The interpreter that runs this benchmark."""
    return Path(sys.executable)


def relative(path: Path) -> str:
    """``path`` as seen from the root of the tree."""
    return str(path.relative_to(ROOT))


def _read_events(folder: Path) -> Progress:
    return from_events((folder / "run" / "events.jsonl").read_text().splitlines())


def _read_report(folder: Path) -> Progress:
    return from_report((folder / "report.jsonl").read_text().splitlines())


def _chosen(folder: Path) -> list[str]:
    """How the plan computed, in one sentence."""
    plan = json.loads((folder / "run" / "plan.json").read_text())
    tuning = plan["tuning"]
    compiled = "compiled" if tuning["compile"] else "not compiled"
    return [f"computed in {tuning['precision']}, {tuning['memory_format']}, {compiled}"]
