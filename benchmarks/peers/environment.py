"""The peers' own virtual environment, ``.venv-peers`` beside ``.venv``, built when first needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.harness import ROOT, ContestantFailed

FOLDER = ROOT / ".venv-peers"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
_DONE = "installed-requirements.txt"


def peers_python() -> Path:
    """The interpreter that has the peers; installs them if their list changed since the last time.

    Raises:
        ContestantFailed: they could not be installed.
    """
    python = FOLDER / "bin" / "python"
    done = FOLDER / _DONE
    wanted = REQUIREMENTS.read_text()
    if python.exists() and done.exists() and done.read_text() == wanted:
        return python
    sys.stderr.write(f"installing the peers into {FOLDER.name}\n")
    _call([sys.executable, "-m", "venv", str(FOLDER)])
    _call([str(python), "-m", "pip", "install", "--quiet", "--requirement", str(REQUIREMENTS)])
    done.write_text(wanted)
    return python


def pinned_versions() -> dict[str, str]:
    """The versions that the peers' list asks for.

    >>> pinned_versions()["ray"]
    '2.60.0'
    """
    lines = [line for line in REQUIREMENTS.read_text().splitlines() if "==" in line]
    pairs = (line.split("==") for line in lines)
    return {name.split("[")[0]: version for name, version in pairs}


def _call(argv: list[str]) -> None:
    ended = subprocess.run(argv, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise ContestantFailed(f"{' '.join(argv)} failed:\n{(ended.stdout + ended.stderr)[-2000:]}")
