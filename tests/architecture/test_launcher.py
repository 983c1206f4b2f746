"""The launcher is light: it wires runs without a framework in its own process."""

from __future__ import annotations

import subprocess
import sys

FRAMEWORKS = ("torch", "tensorflow", "keras", "ray", "matplotlib", "tensorboard")


def test_the_main_road_is_imported_without_a_framework() -> None:
    program = (
        f"import sys, leptonai.launch.run; print([name for name in {FRAMEWORKS!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
