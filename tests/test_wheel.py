"""The wheel as a user gets it: built, installed, and used from outside the source tree."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import leptonai

ROOT = Path(__file__).parents[1]
JOB = """
import numpy as np
from torch import nn
import leptonai
from leptonai import SGD, Arrays, Data, TrainJob

print(leptonai.__file__)
inputs = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
data = Data(train=Arrays(inputs, (inputs[:, 0] > 0).astype("int64")))
job = TrainJob(
    model=lambda: nn.Linear(4, 2), data=data, loss="cross_entropy", optimizer=SGD(lr=0.1), steps=1, global_batch_size=32
)
"""


def run(*command: str | Path, cwd: Path, site: Path | None = None) -> str:
    """The output of a command that must end well, with only ``site`` on the path besides the dependencies."""
    ours = ("PYTHONPATH", "LEPTON_HOME", "LEPTON_DATA")
    env = {name: value for name, value in os.environ.items() if name not in ours}
    if site is not None:
        env |= {"PYTHONPATH": str(site), "LEPTON_HOME": str(cwd / "home")}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built with what the environment has: nothing is fetched."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel and nothing else; its dependencies are this environment's."""
    folder = tmp_path_factory.mktemp("site")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--disable-pip-version-check",
    ]
    run(*pip, "--target", folder, wheel, cwd=folder)
    return folder


def test_the_wheel_holds_the_package_its_types_and_its_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        described = email.message_from_bytes(archive.read(metadata))
    source = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "leptonai").rglob("*.py")}
    assert source | {"leptonai/py.typed", "leptonai/training/parameter_server/compiled/kernels.c"} <= set(
        names
    )
    assert {name.split("/")[0] for name in names} == {"leptonai", metadata.split("/")[0]}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert described["Name"] == "openlepton"
    assert described["Version"] == leptonai.__version__
    assert str(described.get_payload()).startswith("# openlepton")


def test_the_installed_package_is_used_from_outside_the_tree(site: Path, tmp_path: Path) -> None:
    where = run(sys.executable, "-c", "import leptonai; print(leptonai.__file__)", cwd=tmp_path, site=site)
    assert Path(where.strip()).is_relative_to(site)
    said = run(site / "bin" / "lepton", "version", cwd=tmp_path, site=site)
    assert said.startswith(f"lepton {leptonai.__version__} ")


def test_the_installed_command_trains(site: Path, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "cluster.yaml").write_text("nodes:\n  - name: here\nworkers: 2\n")
    words = ["train", "job.py", "--cluster", "cluster.yaml", "--run-dir", "run", "--no-autotune"]
    run(site / "bin" / "lepton", *words, cwd=tmp_path, site=site)
    assert (tmp_path / "run" / "checkpoints" / "step-00000001" / "state.safetensors").is_file()
    for log in ("scout.log", "rank-0.log", "rank-1.log"):
        assert str(site) in (tmp_path / "run" / "logs" / log).read_text(), "a worker took another leptonai"
