"""The README's programs run as they stand, on the small data set in tests/data.

``<!-- file: NAME -->`` before a block makes it a file, ``<!-- not run: REASON -->`` leaves it out; the rest is run,
see tests/tutorials/walk.py. Each ``lepton train`` gets a short length, since the pages name the whole of MNIST.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.tutorials.walk import ROOT, blocks, walk

README = ROOT / "README.md"
SETTINGS = "--set steps=8"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_programs_of_the_readme_run(tmp_path: Path) -> None:
    assert sum(block.is_run for block in blocks(README)) >= 2
    walk(README, tmp_path, settings=SETTINGS)
    runs = list((tmp_path / "runs").iterdir())
    assert len(runs) == 4  # the job, the same with a parameter server, the same privately, and fit
    for name in _files_of_a_run():
        assert all((run / name).exists() for run in runs), name


def _files_of_a_run() -> list[str]:
    """What the README says a run directory holds."""
    section = README.read_text().partition("## What a run leaves")[2].partition("\n## ")[0]
    names = [
        name
        for row in re.findall(r"^\| (`[^|]+`) \|", section, re.M)
        for name in re.findall(r"`([^`]+)`", row)
    ]
    assert len(names) == 10
    return names


def test_the_readme_says_which_leptonai_it_is_not() -> None:
    said = " ".join(README.read_text().split())
    assert "It is distributed as `openlepton`. The `leptonai` on PyPI is another product" in said


def test_the_figures_have_their_place() -> None:
    _, start, rest = README.read_text().partition("<!-- figures:start -->\n")
    table, end, _ = rest.partition("<!-- figures:end -->")
    assert start
    assert end
    assert len(re.findall(r"^\|.*\|$", table, re.M)) >= 3
    assert table.count("<!--") == 0
