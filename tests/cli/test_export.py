from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from leptonai.training import durable
from tests.cli.conftest import Said

Lepton = Callable[..., Said]


def test_the_exported_file_holds_the_model_alone_under_its_own_names(lepton: Lepton, stage: Path) -> None:
    assert lepton("export", "first", "--to", "weights.safetensors").code == 0
    tensors = load_file(stage / "weights.safetensors")
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        "weight": [[1, 2], [3, 4]],
        "bias": [5, 6],
    }
    assert tensors["weight"].dtype == np.float32


def test_a_damaged_checkpoint_is_never_exported(lepton: Lepton, stage: Path) -> None:
    (state,) = (stage / "runs" / "first" / "checkpoints").glob("*/state.safetensors")
    data = bytearray(state.read_bytes())
    data[-1] ^= 1
    state.write_bytes(data)
    said = lepton("export", "first", "--to", "weights.safetensors")
    assert said.code == 4
    assert "is damaged and passed over" in said.err
    assert not (stage / "weights.safetensors").exists()


def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(
    lepton: Lepton, stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stage / "weights.safetensors").write_text("old")
    before = sorted(stage.iterdir())

    def full(descriptor: int, view: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable.os, "write", full)
    said = lepton("export", "first", "--to", "weights.safetensors")
    monkeypatch.undo()
    assert said.code == 4
    assert "No space left on device" in said.err
    assert (stage / "weights.safetensors").read_text() == "old"
    assert sorted(stage.iterdir()) == before


def test_a_keras_file_needs_tensorflow(lepton: Lepton, stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stage / "runs" / "first" / "job.json"
    job = json.loads(path.read_text())
    path.write_text(json.dumps({**job, "framework": "tensorflow", "file": str(stage / "tiny_keras.py")}))
    for name in ("KERAS_BACKEND", "TF_CPP_MIN_LOG_LEVEL"):  # put back at the end what the command sets
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    said = lepton("export", "first", "--to", "model.keras")
    assert said.code == 2
    assert "openlepton[tensorflow]" in said.err


def test_a_notebook_job_cannot_be_built_again(lepton: Lepton, stage: Path) -> None:
    path = stage / "runs" / "first" / "job.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "framework": "tensorflow"}))
    said = lepton("export", "first", "--to", "model.keras")
    assert said.code == 2
    assert "came from a notebook" in said.err


@pytest.mark.slow
def test_a_keras_file_has_the_trained_weights_and_loads_by_itself(stage: Path) -> None:
    def command(*words: str) -> None:
        program = "from leptonai.cli import main; main()"
        subprocess.run([sys.executable, "-c", program, *words], cwd=stage, check=True, capture_output=True)

    command("train", "tiny_keras.py", "-c", "one.yaml", "--no-autotune", "--run-dir", "runs/keras")
    command("export", "runs/keras", "--to", "weights.safetensors")
    command("export", "runs/keras", "--to", "model.keras")
    program = (
        "import json, keras; model = keras.saving.load_model('model.keras');"
        "print(json.dumps({each.path: each.numpy().tolist() for each in model.weights}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=stage, check=True, capture_output=True, text=True
    )
    loaded = json.loads(done.stdout.splitlines()[-1])
    exported = load_file(stage / "weights.safetensors")
    assert loaded == {name: tensor.tolist() for name, tensor in exported.items()}
    assert len(loaded) == 4
