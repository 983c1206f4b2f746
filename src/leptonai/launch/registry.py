"""The register of runs: which ran, where their directories are, how they ended. One table in the workspace.

The register only points; a run directory still tells everything when the register is lost.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sql

from leptonai.core.clock import Clock, SystemClock
from leptonai.core.errors import InputError
from leptonai.core.workspace import Workspace

METADATA = sql.MetaData()
RUNS = sql.Table(
    "runs",
    METADATA,
    sql.Column("run_id", sql.String(200), primary_key=True),
    # Two directories in different places may bear the same name, and so may their runs.
    sql.Column("path", sql.String(1000), primary_key=True),
    sql.Column("task", sql.Text, nullable=False),
    sql.Column("status", sql.String(20), nullable=False),
    sql.Column("num_workers", sql.Integer, nullable=False),
    sql.Column("started_seconds", sql.Float, nullable=False),
    sql.Column("ended_seconds", sql.Float),
    sql.Column("step", sql.Integer, nullable=False),
    sql.Column("metrics", sql.JSON, nullable=False),
    sql.Column("host", sql.Text, nullable=False),
    sql.Column("launcher", sql.Text, nullable=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredRun:
    """One row.

    ``status`` is running, done, stopped, failed, interrupted, or ``lost``: its launcher died without a word.
    """

    run_id: str
    path: Path
    task: str
    status: str
    num_workers: int
    started_seconds: float
    ended_seconds: float | None = None
    step: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


class RunRegistry:
    """The table of runs on an open workspace.

    Args:
        workspace: where the table lies; made if it is not there.
        clock: for the times of start and end.
    """

    def __init__(self, workspace: Workspace, *, clock: Clock | None = None) -> None:
        self._workspace = workspace
        self._clock = clock or SystemClock()
        workspace.create(METADATA)

    def register(self, *, run_id: str, path: Path, task: str, num_workers: int, pid: int) -> None:
        """Note that a run starts, or starts again after a resume.

        Args:
            pid: of the launcher; while that very process lives the run counts as running.
        """
        row = {
            "run_id": run_id,
            "path": str(path.absolute()),
            "task": task,
            "status": "running",
            "num_workers": num_workers,
            "started_seconds": self._clock.now_seconds(),
            "ended_seconds": None,
            "step": 0,
            "metrics": {},
            "host": socket.gethostname(),
            "launcher": process_identity(pid),
        }
        with self._workspace.transaction() as connection:
            same = (RUNS.c.run_id == run_id) & (RUNS.c.path == row["path"])
            connection.execute(sql.delete(RUNS).where(same))
            connection.execute(sql.insert(RUNS).values(**row))

    def finish(self, run_id: str, *, status: str, step: int, metrics: Mapping[str, float]) -> None:
        """Note how a run ended: the latest of that name.

        Raises:
            InputError: the run was never registered.
        """
        latest = sql.select(sql.func.max(RUNS.c.started_seconds)).where(RUNS.c.run_id == run_id)
        change = sql.update(RUNS).where(RUNS.c.run_id == run_id)
        change = change.where(RUNS.c.started_seconds == latest.scalar_subquery())
        values = {"status": status, "step": step, "metrics": dict(metrics)}
        with self._workspace.transaction() as connection:
            done = connection.execute(change.values(**values, ended_seconds=self._clock.now_seconds()))
            if done.rowcount == 0:
                raise InputError(f"run {run_id!r} is not in the register")

    def list(self) -> list[RegisteredRun]:
        """All runs, newest first."""
        query = sql.select(RUNS).order_by(RUNS.c.started_seconds.desc(), RUNS.c.run_id)
        with self._workspace.transaction() as connection:
            return [_to_run(row) for row in connection.execute(query).mappings()]

    def find(self, beginning: str) -> RegisteredRun:
        """The one run whose id starts with ``beginning``; an exact match wins.

        Raises:
            InputError: none does, or several do.
        """
        found = [run for run in self.list() if run.run_id.startswith(beginning)]
        exact = [run for run in found if run.run_id == beginning]
        if len(exact or found) == 1:
            return (exact or found)[0]
        if not found:
            raise InputError(f"no run is called {beginning!r}", hint="see: lepton runs list")
        several = ", ".join(str(run.path) for run in (exact or found)[:3])
        raise InputError(
            f"{beginning!r} could mean {len(exact or found)} runs, such as {several}",
            hint="write more of the name, or the directory",
        )


def process_identity(pid: int) -> str:
    """A name for one process that no other ever gets on this machine: boot, id and start time. Linux only.

    The start time comes from the kernel in ticks since boot: unlike wall time it never shifts.
    Empty when there is no such process (or it has ended and waits to be reaped).
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    # The second field, the program's name in brackets, may itself hold spaces and brackets.
    state, *fields = stat.rpartition(")")[2].split()
    return "" if state in "ZX" else f"{boot} {pid} {fields[18]}"


def is_alive(identity: str) -> bool:
    """Whether the process named by :func:`process_identity` still lives.

    >>> import os
    >>> is_alive(process_identity(os.getpid())), is_alive("another boot 1 2"), is_alive("")
    (True, False, False)
    """
    words = identity.split()
    return len(words) == 3 and words[1].isdigit() and process_identity(int(words[1])) == identity


def _to_run(row: sql.RowMapping) -> RegisteredRun:
    # A launcher on another host of a shared home cannot be looked up; its word is taken.
    here = row["host"] == socket.gethostname()
    lost = row["status"] == "running" and here and not is_alive(row["launcher"])
    return RegisteredRun(
        run_id=row["run_id"],
        path=Path(row["path"]),
        task=row["task"],
        status="lost" if lost else row["status"],
        num_workers=row["num_workers"],
        started_seconds=row["started_seconds"],
        ended_seconds=row["ended_seconds"],
        step=row["step"],
        metrics=row["metrics"],
    )


def workspace_url(home: Path) -> str:
    """Where the workspace of a home directory lies, as a database URL.

    >>> workspace_url(Path("/srv/lepton"))
    'sqlite:////srv/lepton/workspace.db'
    """
    return f"sqlite:///{home / 'workspace.db'}"


@contextmanager
def open_registry(home: Path, *, clock: Clock | None = None) -> Iterator[RunRegistry]:
    """The register of a home directory, which is made if it is not there.

    Raises:
        InputError: the home cannot be made or written.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        hint = "name another with --home, or set LEPTON_HOME"
        raise InputError(f"{home}: cannot be made: {error.strerror}", hint=hint) from error
    with closing(Workspace.open(workspace_url(home))) as workspace:
        yield RunRegistry(workspace, clock=clock)
