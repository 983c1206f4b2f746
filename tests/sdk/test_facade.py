"""``import leptonai`` is cheap and imports nothing heavy; everything it promises is there."""

from __future__ import annotations

import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

import leptonai
from leptonai.core.errors import InputError

ROOT = Path(__file__).parents[2]
HEAVY = ("numpy", "torch", "tensorflow", "keras", "pydantic", "rich", "matplotlib", "sqlalchemy", "yaml")


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


def test_import_loads_no_framework_and_nothing_heavy() -> None:
    loaded = run(
        "import sys, leptonai\n"
        "from leptonai import TensorFlow, PyTorch\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert loaded == "[]"


def test_import_takes_less_than_50_milliseconds() -> None:
    program = "import time\nbegan = time.perf_counter()\nimport leptonai\nprint(time.perf_counter() - began)"
    assert min(float(run(program)) for _ in range(5)) < 0.05


@pytest.mark.parametrize("name", [name for name in leptonai.__all__ if name not in ("TensorFlow", "PyTorch")])
def test_every_name_is_there(name: str) -> None:
    assert getattr(leptonai, name) is not None
    assert name in dir(leptonai)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Kubernetes'"):
        leptonai.Kubernetes  # noqa: B018


def test_the_version_is_the_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert leptonai.__version__ == project["version"]


def test_an_absent_tensorflow_is_told_when_it_is_first_used() -> None:
    assert (
        run(
            "import importlib.util\n"
            "find = importlib.util.find_spec\n"
            "importlib.util.find_spec = lambda name: None if name == 'tensorflow' else find(name)\n"
            "from leptonai import InputError, TensorFlow\n"
            "try:\n"
            "    TensorFlow.Dense(3)\n"
            "except InputError as error:\n"
            "    print(error.hint)\n"
        )
        == "pip install openlepton[tensorflow]"
    )


def test_a_cluster_starts_nothing(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("nodes: [{name: here}]\nworkers: 2\n")
    before = Path(f"/proc/self/task/{_main_thread()}/children").read_text()
    began = time.perf_counter()
    with leptonai.TensorFlow.TFCluster(path), leptonai.PyTorch.Cluster(path):
        children = Path(f"/proc/self/task/{_main_thread()}/children").read_text()
    assert children == before
    assert time.perf_counter() - began < 5


def _main_thread() -> int:
    import os

    return os.getpid()


def test_a_wrong_cluster_file_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("nodes: [{name: here}]\nworkers: 0\n")
    with pytest.raises(InputError, match=r"cluster\.yaml:2"):
        leptonai.TensorFlow.TFCluster(path)
