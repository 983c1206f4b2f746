"""The cluster that ``fit`` uses inside a ``with`` block."""

from __future__ import annotations

import os
from contextvars import ContextVar, Token
from pathlib import Path
from types import TracebackType

from leptonai.core.errors import InputError

_ACTIVE: ContextVar[tuple[TrainingCluster, ...]] = ContextVar("leptonai_clusters", default=())


class TrainingCluster:
    """A cluster file, used by every ``fit`` inside its ``with`` block. Starts nothing by itself.

    Args:
        path: the cluster file.
        run_dir: where the next run is kept; None: a new directory under ``./runs`` for each run.

    Raises:
        InputError: the file is missing or wrong; all its problems are reported at once.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "cluster.yaml"
    ...     _ = path.write_text("nodes: [{name: laptop}]\\nworkers: 2\\n")
    ...     with TrainingCluster(path) as cluster:
    ...         active_cluster() is cluster
    True
    """

    def __init__(
        self, path: str | os.PathLike[str], *, run_dir: str | os.PathLike[str] | None = None
    ) -> None:
        from leptonai.compute.cluster_file import read_cluster

        self.path = Path(path)
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.cluster = read_cluster(self.path, available_cores=len(os.sched_getaffinity(0)))
        self.text = self.path.read_text(encoding="utf-8")
        self._tokens: list[Token[tuple[TrainingCluster, ...]]] = []

    def __enter__(self) -> TrainingCluster:
        self._tokens.append(_ACTIVE.set((*_ACTIVE.get(), self)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _ACTIVE.reset(self._tokens.pop())

    def __repr__(self) -> str:
        return f"TrainingCluster({str(self.path)!r}, workers={self.cluster.num_workers})"


def active_cluster() -> TrainingCluster | None:
    """The cluster of the innermost ``with`` block around the caller, if there is one."""
    stack = _ACTIVE.get()
    return stack[-1] if stack else None


def require_cluster(what: str) -> TrainingCluster:
    """The active cluster.

    Raises:
        InputError: there is none.
    """
    found = active_cluster()
    if found is None:
        raise InputError(f"{what} needs a cluster", hint='call it inside: with Cluster("cluster.yaml"):')
    return found
