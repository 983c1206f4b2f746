"""Full disks, read-only directories and killed writers never leave a bad checkpoint behind."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from leptonai.core.errors import Fault
from leptonai.training.checkpoint import Checkpoint, CheckpointStore
from leptonai.training.learner import LearnerState, RawTensor


def checkpoint(step: int, size_bytes: int) -> Checkpoint:
    data = np.full(size_bytes, step % 251, np.uint8).data
    state = LearnerState(tensors={"model/w": RawTensor("U8", (size_bytes,), data)}, values={"step": step})
    return Checkpoint(step=step, epoch=0, job={}, num_workers=1, state=state, extra={})


def never(path: str, reason: str) -> None:
    raise AssertionError(f"{path} was called damaged: {reason}")


def leftovers(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name.startswith(".tmp-")]


def check_save_fails_cleanly(store: CheckpointStore, directory: Path, size_bytes: int, message: str) -> None:
    """The second save fails; the first stays, is whole, and nothing else is there."""
    with pytest.raises(Fault, match=message):
        store.save(checkpoint(2, size_bytes))
    assert leftovers(directory) == []
    assert [path.name for path in store.list()] == ["step-00000001"]
    found = store.load_latest(never)
    assert found is not None
    assert found.step == 1


@contextlib.contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[None]:
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a file system needs more rights than there are here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_fails_the_save_and_nothing_else(tmp_path: Path) -> None:
    with small_disk(tmp_path, 1 << 20):
        store = CheckpointStore(tmp_path / "checkpoints", keep=2)
        store.save(checkpoint(1, 300_000))
        check_save_fails_cleanly(store, tmp_path / "checkpoints", 900_000, "No space left on device")
        # Once there is room again, saving works again.
        store.save(checkpoint(3, 200_000))
        found = store.load_latest(never)
        assert found is not None
        assert found.step == 3


def test_a_read_only_disk_fails_the_save_and_can_still_be_read(tmp_path: Path) -> None:
    with small_disk(tmp_path, 1 << 20):
        store = CheckpointStore(tmp_path / "checkpoints")
        store.save(checkpoint(1, 1000))
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        check_save_fails_cleanly(store, tmp_path / "checkpoints", 1000, "Read-only file system")


@pytest.mark.parametrize("limit_bytes", [100, 5000, 50_000])
def test_a_file_cut_short_by_the_system_fails_the_save(tmp_path: Path, limit_bytes: int) -> None:
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(1, 60_000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        with pytest.raises(Fault, match="File too large"):
            store.save(checkpoint(2, 60_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert leftovers(tmp_path) == []
    assert [path.name for path in store.list()] == ["step-00000001"]


def test_a_directory_that_is_a_file_fails_the_save_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(Fault, match=r"step 7 in .*checkpoints"):
        CheckpointStore(tmp_path / "checkpoints").save(checkpoint(7, 10))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_write_permission_fails_the_save(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(Fault, match="Permission denied"):
            CheckpointStore(tmp_path).save(checkpoint(1, 10))
    finally:
        tmp_path.chmod(0o700)


def test_writers_at_the_same_time_take_turns(tmp_path: Path) -> None:
    stores = [CheckpointStore(tmp_path, keep=3) for _ in range(4)]
    threads = [threading.Thread(target=store.save, args=(checkpoint(5, 1 << 20),)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert leftovers(tmp_path) == []
    assert [path.name for path in stores[0].list()] == ["step-00000005.3"]
    assert stores[0].load_latest(never) is not None


# What can leave a trace on the disk; a save is killed just before each of its calls to these.
DISK_CALLS = {"open", "write", "fsync", "mkdir", "rename", "replace", "unlink", "rmdir", "flock", "close"}


def save_and_die(store: CheckpointStore, wanted: Checkpoint, call: int) -> bool:
    """Save in a forked process that SIGKILLs itself before its ``call``-th call to the disk; False if it lived."""
    child = os.fork()
    if child == 0:
        left = call

        def count(frame: object, event: str, function: object) -> None:
            nonlocal left
            if event == "c_call" and getattr(function, "__name__", "") in DISK_CALLS:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.setprofile(count)
            store.save(wanted)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def test_kill_before_each_call_to_the_disk_leaves_the_old_or_the_new_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    store.save(checkpoint(1, 100))
    latest, call, outcomes = 1, 0, set()
    # Three writes of the state, so that kills fall inside it too.
    while save_and_die(store, checkpoint(latest + 1, 9 << 20), call):
        found = store.load_latest(never)
        assert found is not None
        assert latest <= found.step <= latest + 1
        for path in store.list():
            store.load(path)
        outcomes.add(found.step - latest)
        latest, call = found.step, call + 1
    assert call > 15
    assert outcomes == {0, 1}
    store.save(checkpoint(latest + 2, 10))
    assert leftovers(tmp_path) == []
    assert len(store.list()) == 1


WRITER = """
import sys
from pathlib import Path
import numpy as np
from leptonai.training.checkpoint import Checkpoint, CheckpointStore
from leptonai.training.learner import LearnerState, RawTensor

store = CheckpointStore(Path(sys.argv[1]), keep=2)
step = int(sys.argv[2])
while True:
    step += 1
    data = np.full(1 << 20, step % 251, np.uint8).data
    state = LearnerState(tensors={"model/w": RawTensor("U8", (1 << 20,), data)}, values={"step": step})
    store.save(Checkpoint(step=step, epoch=0, job={}, num_workers=1, state=state, extra={}))
    print(step, flush=True)
"""


def killed_writer(directory: Path, first_step: int, delay: float) -> int:
    """Save on and on in a process of its own, kill it some time after its first word; its last word."""
    command = [sys.executable, "-c", WRITER, str(directory), str(first_step)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        told = writer.stdout.readline()
        timer = threading.Timer(delay, writer.send_signal, [signal.SIGKILL])
        timer.start()
        for line in writer.stdout:
            told = line if line.endswith("\n") else told
        timer.join()
    assert writer.returncode == -signal.SIGKILL
    return int(told)


def test_kill_at_any_instant_keeps_every_acknowledged_checkpoint(tmp_path: Path) -> None:
    # The delays differ from run to run in effect only; no outcome depends on where the kill falls.
    delays = random.Random(0)
    step = 0
    for _ in range(20):
        acknowledged = killed_writer(tmp_path, step, delays.uniform(0.0, 0.03))
        found = CheckpointStore(tmp_path, keep=2).load_latest(never)
        assert found is not None
        # The one being saved when the kill came may be there as well, whole.
        assert acknowledged <= found.step <= acknowledged + 1
        assert found.state.values == {"step": found.step}
        assert bytes(found.state.tensors["model/w"].data) == bytes([found.step % 251]) * (1 << 20)
        step = found.step
    store = CheckpointStore(tmp_path, keep=2)
    store.save(checkpoint(step + 1, 10))
    assert leftovers(tmp_path) == []
    assert len(store.list()) == 2
