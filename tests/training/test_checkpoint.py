"""Checkpoints that are kept, found, and refused when a single byte is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leptonai.core.errors import Fault, InputError
from leptonai.training.checkpoint import DIGEST_NAME, MANIFEST_NAME, STATE_NAME, Checkpoint, CheckpointStore
from leptonai.training.durable import Written, write_durably
from leptonai.training.learner import LearnerState, RawTensor


def checkpoint(step: int, *, mark: int = 0) -> Checkpoint:
    tensors = {
        "model/weight": RawTensor("F32", (3, 2), (np.arange(6, dtype=np.float32) + step + mark).tobytes()),
        "optimizer/count": RawTensor("I64", (), np.int64(step).tobytes()),
    }
    return Checkpoint(
        step=step,
        epoch=step // 10,
        job={"name": "test", "seed": 3},
        num_workers=2,
        state=LearnerState(tensors=tensors, values={"scale": 0.1, "names": ["a", "ü"]}),
        extra={"mark": mark},
    )


def contents(found: Checkpoint | None) -> object:
    assert found is not None
    tensors = {name: (t.dtype, t.shape, bytes(t.data)) for name, t in found.state.tensors.items()}
    values = dict(found.state.values)
    return found.step, found.epoch, dict(found.job), found.num_workers, tensors, values, dict(found.extra)


def names(store: CheckpointStore) -> list[str]:
    return [path.name for path in store.list()]


def never(path: str, reason: str) -> None:
    raise AssertionError(f"{path} was called damaged: {reason}")


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "run" / "checkpoints", keep=3)
    saved = store.save(checkpoint(1200))
    assert saved.path == tmp_path / "run" / "checkpoints" / "step-00001200"
    assert contents(store.load_latest(never)) == contents(checkpoint(1200))
    assert contents(store.load(saved.path)) == contents(checkpoint(1200))
    assert saved.size_bytes == sum(path.stat().st_size for path in saved.path.iterdir())


def test_the_tensors_loaded_can_be_taken_over_without_a_copy(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    tensor = store.load(store.save(checkpoint(1)).path).state.tensors["model/weight"]
    assert np.frombuffer(tensor.data, np.float32).flags.writeable


def test_the_same_state_has_the_same_digest_and_another_has_another(tmp_path: Path) -> None:
    digests = [
        CheckpointStore(tmp_path / str(place)).save(checkpoint(5, mark=place // 2)).digest
        for place in range(3)
    ]
    assert digests[0] == digests[1] != digests[2]


def test_an_empty_or_missing_directory_has_no_checkpoint(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "none").load_latest(never) is None
    assert CheckpointStore(tmp_path).load_latest(never) is None


def test_only_the_last_ones_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1, 5, 20, 100_000_000):
        store.save(checkpoint(step))
    assert names(store) == ["step-00000020", "step-100000000"]


def test_sha256sum_agrees(tmp_path: Path) -> None:
    saved = CheckpointStore(tmp_path).save(checkpoint(7))
    subprocess.run(["sha256sum", "--check", "--quiet", DIGEST_NAME], cwd=saved.path, check=True)
    manifest = json.loads((saved.path / MANIFEST_NAME).read_text())
    state = (saved.path / STATE_NAME).read_bytes()
    assert manifest["files"][STATE_NAME] == {
        "sha256": hashlib.sha256(state).hexdigest(),
        "size_bytes": len(state),
    }


def test_saving_a_step_again_never_passes_through_a_moment_without_it(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    store.save(checkpoint(5, mark=1))
    store.save(checkpoint(5, mark=2))
    assert names(store) == ["step-00000005.1"]
    assert contents(store.load_latest(never)) == contents(checkpoint(5, mark=2))


def test_going_back_and_saving_forgets_the_later_part(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    for step in (10, 20, 30):
        store.save(checkpoint(step))
    store.save(checkpoint(15, mark=9))
    assert names(store) == ["step-00000010", "step-00000015"]


FILES = (STATE_NAME, MANIFEST_NAME, DIGEST_NAME)


@pytest.mark.parametrize("name", FILES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.data())
def test_any_flipped_byte_is_found_and_the_previous_checkpoint_used(
    tmp_path: Path, name: str, data: st.DataObject
) -> None:
    store = CheckpointStore(tmp_path / "all", keep=2)
    if not store.list():
        store.save(checkpoint(1))
        shutil.copytree(store.save(checkpoint(2)).path, tmp_path / "whole")
    path = store.list()[-1] / name
    before = (tmp_path / "whole" / name).read_bytes()
    place = data.draw(st.integers(0, len(before) - 1))
    flipped = bytes([before[place] ^ data.draw(st.integers(1, 255))])
    path.write_bytes(before[:place] + flipped + before[place + 1 :])
    told: list[tuple[str, str]] = []
    found = store.load_latest(lambda *what: told.append(what))
    assert contents(found) == contents(checkpoint(1))
    assert [place for place, _ in told] == [str(path.parent)]
    assert told[0][1]
    with pytest.raises(Fault, match="is damaged"):
        store.load(path.parent)
    path.write_bytes(before)
    assert contents(store.load_latest(never)) == contents(checkpoint(2))


def test_every_single_byte_is_covered(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    path = store.save(checkpoint(1)).path
    for name in FILES:
        before = (path / name).read_bytes()
        for place in range(len(before)):
            damaged = bytearray(before)
            damaged[place] ^= 1 << (place % 8)
            (path / name).write_bytes(damaged)
            with pytest.raises(Fault, match="is damaged"):
                store.load(path)
        (path / name).write_bytes(before)
    store.load(path)


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [shorten, lengthen, empty, remove, replace_by_folder])
def test_other_damage_is_found_too(tmp_path: Path, name: str, damage: object) -> None:
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(1))
    path = store.save(checkpoint(2)).path
    damage(path / name)  # type: ignore[operator]
    told: list[str] = []
    assert contents(store.load_latest(lambda where, reason: told.append(reason))) == contents(checkpoint(1))
    assert len(told) == 1
    assert ".py" not in told[0]


def test_a_checkpoint_under_another_step_is_not_believed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(3)).path.rename(tmp_path / "step-00000009")
    with pytest.raises(Fault, match="all 1 checkpoints"):
        store.load_latest(lambda *_: None)


def test_a_copy_under_a_name_of_ones_own_can_be_loaded(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    shutil.copytree(store.save(checkpoint(3)).path, tmp_path / "best")
    assert contents(store.load(tmp_path / "best")) == contents(checkpoint(3))


def rewrite(path: Path, **changes: object) -> None:
    """Another manifest, with a digest that fits it."""
    manifest = json.loads((path / MANIFEST_NAME).read_text()) | changes
    text = json.dumps(manifest).encode()
    (path / MANIFEST_NAME).write_bytes(text)
    (path / DIGEST_NAME).write_text(f"{hashlib.sha256(text).hexdigest()}  {MANIFEST_NAME}\n")


def test_a_later_format_is_refused_not_skipped(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(1))
    rewrite(store.save(checkpoint(2)).path, format_version=99)
    with pytest.raises(InputError, match="format version 99"):
        store.load_latest(never)


@pytest.mark.parametrize("changes", [{"files": {}}, {"files": None}, {"step": "2"}])
def test_a_manifest_that_lies_with_a_fitting_digest_is_still_refused(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    store = CheckpointStore(tmp_path)
    path = store.save(checkpoint(2)).path
    rewrite(path, **changes)
    with pytest.raises(Fault, match="is damaged"):
        store.load(path)


def test_a_header_longer_than_the_file_is_refused_even_with_fitting_digests(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    path = store.save(checkpoint(2)).path
    state = (2**40).to_bytes(8, "little") + (path / STATE_NAME).read_bytes()[8:]
    (path / STATE_NAME).write_bytes(state)
    rewrite(path, files={STATE_NAME: {"sha256": hashlib.sha256(state).hexdigest(), "size_bytes": len(state)}})
    with pytest.raises(Fault, match="longer than the file"):
        store.load(path)


def test_when_all_are_damaged_the_run_is_not_started_over_in_silence(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        empty(store.save(checkpoint(step)).path / STATE_NAME)
    told: list[str] = []
    with pytest.raises(Fault, match="all 2 checkpoints"):
        store.load_latest(lambda where, reason: told.append(where))
    assert [Path(where).name for where in told] == ["step-00000002", "step-00000001"]


def test_one_found_damaged_does_not_push_out_a_good_one(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (10, 20):
        store.save(checkpoint(step))
    empty(tmp_path / "step-00000020" / STATE_NAME)
    store.load_latest(lambda *_: None)
    store.save(checkpoint(30))
    assert names(store) == ["step-00000010", "step-00000030"]


@pytest.mark.parametrize("wrong", [{"x": float("nan")}, {"x": {1, 2}}, {"x": b"bytes"}])
def test_values_that_are_not_json_are_refused_and_leave_nothing(
    tmp_path: Path, wrong: dict[str, object]
) -> None:
    state = LearnerState(tensors={}, values=wrong)
    bad = Checkpoint(step=1, epoch=0, job={}, num_workers=1, state=state, extra={})
    with pytest.raises(InputError, match="not JSON"):
        CheckpointStore(tmp_path).save(bad)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_keeping_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="keep >= 1"):
        CheckpointStore(tmp_path, keep=0)


def test_strange_files_beside_checkpoints_are_left_alone(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    for name in ("step-1", "step-00000001.tmp", "notes.txt", "step-00000001.01x"):
        (tmp_path / name).write_text("mine")
    store.save(checkpoint(2))
    store.save(checkpoint(3))
    assert names(store) == ["step-00000003"]
    assert (tmp_path / "step-1").read_text() == "mine"


def attach(folder: Path) -> dict[str, Written]:
    (folder / "tables").mkdir()
    return {"tables/t.0.bin": write_durably(folder / "tables" / "t.0.bin", [b"rows" * 1000])}


def test_attached_files_are_part_of_the_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    saved = store.save(checkpoint(3), attach=attach)
    file = saved.path / "tables" / "t.0.bin"
    assert saved.size_bytes == sum(path.stat().st_size for path in saved.path.rglob("*") if path.is_file())
    assert store.load(saved.path).step == 3
    file.write_bytes(b"Rows" + file.read_bytes()[4:])
    with pytest.raises(Fault, match=r"t\.0\.bin does not have the digest"):
        store.load(saved.path)
    assert store.load(saved.path, attached=False).step == 3
    file.unlink()
    with pytest.raises(Fault, match=r"t\.0\.bin cannot be read"):
        store.load(saved.path)
