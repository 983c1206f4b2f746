"""What every test shares: repeatable random cases, and a home of its own so that no test touches the user's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

SMALL_DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Workspace and caches in a temporary directory; the small data sets, unless the full ones are there."""
    before = dict(os.environ)
    os.environ["LEPTON_HOME"] = str(tmp_path_factory.mktemp("home"))
    os.environ["LEPTON_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ.setdefault("LEPTON_DATA", str(SMALL_DATA))
    os.environ["MPLBACKEND"] = "Agg"
    yield
    os.environ.clear()
    os.environ.update(before)
