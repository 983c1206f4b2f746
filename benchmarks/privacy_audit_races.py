"""The races of :mod:`benchmarks.privacy_audit`: many reservers of one budget, on a database of their own.

``python -m benchmarks.privacy_audit_races sqlite|postgresql --report FILE --count N``
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.postgresql import postgres
from benchmarks.privacy_ledger_race import Race, race


def on_sqlite(count: int) -> Race:
    """``count`` reservers on a file."""
    with tempfile.TemporaryDirectory(prefix="race-") as folder:
        return race(f"sqlite:///{folder}/ledger.db", reservers=count)


def on_postgresql(count: int) -> Race:
    """``count`` reservers on a server that is started for them."""
    with postgres() as url:
        return race(url, reservers=count)


PARTS: Mapping[str, Callable[[int], Race]] = {"sqlite": on_sqlite, "postgresql": on_postgresql}


def main(argv: Sequence[str] | None = None) -> int:
    """Hold one race and write its report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--count", type=int, required=True)
    words = parser.parse_args(argv)
    words.report.write_text(json.dumps(dataclasses.asdict(PARTS[words.part](words.count))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
