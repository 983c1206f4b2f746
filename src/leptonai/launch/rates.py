"""What this machine's probe found and what its runs taught since, kept in the workspace."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sql

from leptonai.compute.cluster import Cluster
from leptonai.compute.measured import Measured
from leptonai.compute.plan import Plan
from leptonai.compute.prediction.operations_step import OperatorTimes
from leptonai.core.errors import InputError
from leptonai.core.values import value_from_json, value_to_json
from leptonai.core.workspace import Workspace
from leptonai.launch.registry import workspace_url

METADATA = sql.MetaData()
RATES = sql.Table(
    "machine_rates",
    METADATA,
    sql.Column("machine", sql.String(200), primary_key=True),
    sql.Column("framework", sql.String(40), primary_key=True),
    sql.Column("measured", sql.JSON, nullable=False),
)
CORRECTIONS = sql.Table(
    "rate_corrections",
    METADATA,
    sql.Column("machine", sql.String(200), primary_key=True),
    sql.Column("framework", sql.String(40), primary_key=True),
    sql.Column("correction", sql.JSON, nullable=False),
)
OPERATORS = sql.Table(
    "operator_times",
    METADATA,
    sql.Column("machine", sql.String(200), primary_key=True),
    sql.Column("job", sql.String(64), primary_key=True),
    sql.Column("times", sql.JSON, nullable=False),
)


def this_machine() -> str:
    """A name for this machine and the cores it offers: rates measured with others say nothing of it."""
    return f"{platform.node()}/{platform.machine()}/{len(os.sched_getaffinity(0))} cores"


class RateStore:
    """The tables on an open workspace.

    Args:
        workspace: where they lie; made if they are not there.
        machine: whose rates.
    """

    def __init__(self, workspace: Workspace, machine: str | None = None) -> None:
        self._workspace, self._machine = workspace, machine or this_machine()
        workspace.create(METADATA)

    def measured(self, framework: str) -> Measured | None:
        """What the last probe of this framework found; None: there was none, or another version wrote it."""
        same = (RATES.c.machine == self._machine) & (RATES.c.framework == framework)
        query = sql.select(RATES.c.measured).where(same)
        with self._workspace.transaction() as connection:
            found = connection.scalar(query)
        if found is None:
            return None
        try:
            return value_from_json(Measured, found)
        except InputError:
            return None

    def keep_measured(self, measured: Measured) -> None:
        """Replace what is known of its framework; what runs taught about the old rates is forgotten with them."""
        framework = measured.framework
        with self._workspace.transaction() as connection:
            for table in (RATES, CORRECTIONS):
                same = (table.c.machine == self._machine) & (table.c.framework == framework)
                connection.execute(sql.delete(table).where(same))
            connection.execute(sql.delete(OPERATORS).where(OPERATORS.c.machine == self._machine))
            values = {"machine": self._machine, "framework": framework, "measured": value_to_json(measured)}
            connection.execute(sql.insert(RATES).values(**values))

    def correction(self, framework: str) -> Mapping[str, Any] | None:
        """What was kept for this framework, JSON-ready."""
        same = (CORRECTIONS.c.machine == self._machine) & (CORRECTIONS.c.framework == framework)
        with self._workspace.transaction() as connection:
            found: Mapping[str, Any] | None = connection.scalar(
                sql.select(CORRECTIONS.c.correction).where(same)
            )
            return found

    def keep_correction(self, framework: str, correction: Mapping[str, Any]) -> None:
        """Replace it."""
        same = (CORRECTIONS.c.machine == self._machine) & (CORRECTIONS.c.framework == framework)
        row = {"machine": self._machine, "framework": framework, "correction": dict(correction)}
        with self._workspace.transaction() as connection:
            connection.execute(sql.delete(CORRECTIONS).where(same))
            connection.execute(sql.insert(CORRECTIONS).values(**row))

    def timed(self, job: str) -> OperatorTimes | None:
        """A job's operations as timed here, by :func:`job_key`; None: they were not."""
        same = (OPERATORS.c.machine == self._machine) & (OPERATORS.c.job == job)
        with self._workspace.transaction() as connection:
            found = connection.scalar(sql.select(OPERATORS.c.times).where(same))
        try:
            return None if found is None else value_from_json(OperatorTimes, found)
        except InputError:
            return None

    def keep_timed(self, job: str, times: OperatorTimes) -> None:
        """Replace them."""
        same = (OPERATORS.c.machine == self._machine) & (OPERATORS.c.job == job)
        row = {"machine": self._machine, "job": job, "times": value_to_json(times)}
        with self._workspace.transaction() as connection:
            connection.execute(sql.delete(OPERATORS).where(same))
            connection.execute(sql.insert(OPERATORS).values(**row))


def job_key(plan: Plan) -> str:
    """Equal for plans whose operations take equally long on one machine, whatever their batch and threads."""
    tuning = plan.tuning
    words = [value_to_json(each) for each in plan.workload.operations]
    text = json.dumps([words, tuning.precision, tuning.memory_format, tuning.compile])
    return hashlib.sha256(text.encode()).hexdigest()


def rates_of(cluster: Cluster, store: RateStore, framework: str) -> Measured | None:
    """What was measured with this framework: the cluster file's own word, else this machine's last probe."""
    if cluster.measured is not None and cluster.measured.framework == framework:
        return cluster.measured
    return store.measured(framework)


@contextmanager
def open_rates(home: Path) -> Iterator[RateStore]:
    """The store in a home directory's workspace."""
    with Workspace.open(workspace_url(home)) as workspace:
        yield RateStore(workspace)
