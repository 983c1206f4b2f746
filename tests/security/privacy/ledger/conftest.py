from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.postgresql import missing, postgres

from leptonai.core.workspace import Workspace


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """A PostgreSQL for all tests of this process."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'w.db'}"
    import psycopg

    at: str = request.getfixturevalue("server")
    with psycopg.connect(at, autocommit=True) as connection:
        # Cheaper than a database for each test, which is a thousand files.
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    return at


@pytest.fixture
def workspace(url: str) -> Iterator[Workspace]:
    """An open workspace, on each kind of database in turn."""
    with Workspace.open(url) as opened:
        yield opened
