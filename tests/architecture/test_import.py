"""`import leptonai` is quick and brings no framework; neither does asking the command for help."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

import pytest

LONGEST_SECONDS = 0.050
FRAMEWORKS = ("torch", "tensorflow", "keras", "jax", "ray", "numpy", "matplotlib", "tensorboard")

PROGRAM = """
import json, sys, time
began = time.perf_counter()
import {module}
print(json.dumps([time.perf_counter() - began, sorted({{name.split(".")[0] for name in sys.modules}})]))
"""


def imported(module: str) -> tuple[float, set[str]]:
    """Seconds the import takes in a fresh interpreter, and the packages it brings."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(module=module)], capture_output=True, text=True, check=True
    )
    seconds, names = json.loads(done.stdout)
    return seconds, set(names)


def test_importing_the_package_takes_under_50_ms_and_brings_no_framework() -> None:
    found = [imported("leptonai") for _ in range(7)]
    assert statistics.median(seconds for seconds, _ in found) < LONGEST_SECONDS
    assert not found[0][1] & set(FRAMEWORKS)


@pytest.mark.parametrize("module", ["leptonai.cli.app", "leptonai.launch.engine", "leptonai.sdk.keras", "leptonai.sdk.pytorch"])
def test_what_the_launcher_starts_with_brings_no_framework(module: str) -> None:
    _, names = imported(module)
    assert not names & (set(FRAMEWORKS) - {"numpy"})
