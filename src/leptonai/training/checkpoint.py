"""Checkpoints: a directory of safetensors and JSON each, whole or not there, checked to the last byte.

``docs/formats/checkpoint.md`` describes the files. Nothing in them is ever executed: no pickle.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leptonai.core.errors import Fault, InputError
from leptonai.training.durable import (
    Written,
    flush_directory,
    locked,
    make_directory,
    published,
    remove_directory,
    remove_leftovers,
    write_durably,
)
from leptonai.training.learner import LearnerState
from leptonai.training.tensor_file import decode_tensors, encode_tensors

FORMAT_VERSION = 1
STATE_NAME = "state.safetensors"
MANIFEST_NAME = "manifest.json"
DIGEST_NAME = "manifest.sha256"

_NAME = re.compile(r"step-(\d{8,18})(?:\.(\d{1,9}))?")
_READ_BYTES = 4 << 20


Attach = Callable[[Path], Mapping[str, Written]]
"""Writes files durably into a folder; what it wrote, by name within the folder."""


def _nothing(folder: Path) -> Mapping[str, Written]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """All that a run needs to go on.

    Args:
        step: optimiser steps done, >= 0.
        epoch: whole epochs done, >= 0.
        job: JSON-ready values by which a run recognises its own checkpoint.
        num_workers: how many there were, >= 1.
        state: of the learner.
        extra: JSON-ready values of the loop's own.
    """

    step: int
    epoch: int
    job: Mapping[str, Any]
    num_workers: int
    state: LearnerState
    extra: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint on disk; ``digest`` (of the manifest, which holds the others) stands for all its bytes."""

    path: Path
    digest: str
    size_bytes: int


class CheckpointStore:
    """The checkpoints of one run, in ``directory``, which is made by the first save.

    A save is taken for the run's latest word: checkpoints of the same or a later step (damaged ones, or those
    of a part of the run that was rolled back) are removed after it, and then all but the last ``keep``.

    Args:
        directory: where they lie; nothing else may.
        keep: how many stay, >= 1.
        before_save: called with the step; an OSError that it raises counts as one of the disk's.

    >>> import tempfile
    >>> from leptonai.training.learner import RawTensor
    >>> state = LearnerState(tensors={"model/w": RawTensor("F32", (1,), bytes(4))}, values={"t": 7})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = CheckpointStore(Path(folder), keep=2)
    ...     saved = store.save(
    ...         Checkpoint(step=7, epoch=0, job={}, num_workers=1, state=state, extra={})
    ...     )
    ...     print(saved.path.name, store.load(saved.path).state.values)
    step-00000007 {'t': 7}
    """

    def __init__(
        self, directory: Path, *, keep: int = 3, before_save: Callable[[int], None] = lambda step: None
    ) -> None:
        if keep < 1:
            raise InputError(f"CheckpointStore: expected keep >= 1, found {keep}")
        self._directory, self._keep = Path(directory), keep
        self._before_save = before_save
        self._damaged: set[str] = set()

    def save(self, checkpoint: Checkpoint, *, attach: Attach = _nothing) -> Saved:
        """Write a checkpoint; when this returns it survives a crash, and only then are old ones removed.

        Args:
            attach: writes further files into the checkpoint's folder, too large to be held in memory.

        Raises:
            Fault: the disk is full, read-only or broken; the older checkpoints are untouched.
            InputError: ``job``, ``extra`` or the state's values are not JSON.
        """
        try:
            self._before_save(checkpoint.step)
            make_directory(self._directory)
            with locked(self._directory):
                remove_leftovers(self._directory)
                saved = self._write(checkpoint, attach)
                self._prune(saved.path)
        except OSError as error:
            raise _could_not_save(checkpoint.step, self._directory, error) from error
        return saved

    def list(self) -> tuple[Path, ...]:
        """The checkpoints there are, oldest first; not yet checked."""
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise Fault(f"could not list checkpoints in {self._directory}: {error.strerror}") from error
        return tuple(self._directory / name for name in sorted(filter(_NAME.fullmatch, names), key=_position))

    def load(self, path: Path, *, attached: bool = True) -> Checkpoint:
        """The checkpoint at ``path``, every byte of it checked.

        Args:
            attached: check attached files too; False: whoever reads them checks them.

        Raises:
            Fault: it is damaged or cannot be read.
            InputError: it has a format this version does not know.
        """
        try:
            return _read(path, attached=attached)
        except _Damaged as error:
            raise Fault(f"checkpoint {path} is damaged: {error}", hint="resume from an older one") from error

    def load_latest(self, on_damaged: Callable[[str, str], None]) -> Checkpoint | None:
        """The latest checkpoint that is whole; None when there is none at all.

        Args:
            on_damaged: told (path, reason) of each one passed over.

        Raises:
            Fault: there are checkpoints, but all are damaged.
            InputError: the latest whole one has a format this version does not know.
        """
        paths = self.list()
        for path in reversed(paths):
            try:
                return _read(path)
            except _Damaged as error:
                self._damaged.add(path.name)
                on_damaged(str(path), str(error))
        if paths:
            raise Fault(
                f"all {len(paths)} checkpoints in {self._directory} are damaged",
                hint="start the run anew in another directory",
            )
        return None

    def _write(self, checkpoint: Checkpoint, attach: Attach) -> Saved:
        name = self._free_name(checkpoint.step)
        with published(self._directory, name) as folder:
            tensors = encode_tensors(checkpoint.state.tensors)
            state = write_durably(folder / STATE_NAME, tensors)
            written = {STATE_NAME: state, **attach(folder)}
            for inside in {(folder / name).parent for name in written} - {folder}:
                flush_directory(inside)
            files = {
                name: {"sha256": each.sha256, "size_bytes": each.size_bytes} for name, each in written.items()
            }
            manifest = write_durably(folder / MANIFEST_NAME, [_manifest(checkpoint, files)])
            digest = write_durably(folder / DIGEST_NAME, [_digest_line(manifest.sha256)])
        size_bytes = sum(each.size_bytes for each in (*written.values(), manifest, digest))
        return Saved(self._directory / name, manifest.sha256, size_bytes)

    def _free_name(self, step: int) -> str:
        """A name not taken: replacing a directory needs two renames, and a crash between them loses both."""
        attempts = [_position(path.name)[1] for path in self.list() if _position(path.name)[0] == step]
        return f"step-{step:08d}" + (f".{max(attempts) + 1}" if attempts else "")

    def _prune(self, newest: Path) -> None:
        paths = self.list()
        older = [path for path in paths[: paths.index(newest)] if path.name not in self._damaged]
        same_step = _position(newest.name)[0]
        kept = [path for path in older if _position(path.name)[0] < same_step]
        staying = {newest, *kept[max(0, len(kept) - self._keep + 1) :]}
        for path in paths:
            # The new one is safe already; what cannot be removed now is left to the next save.
            if path not in staying:
                with suppress(OSError):
                    remove_directory(path)


class _Damaged(Exception):
    """The reason a checkpoint cannot be trusted."""


def _position(name: str) -> tuple[int, int]:
    """Step and attempt, by which checkpoints are in order."""
    found = _NAME.fullmatch(name)
    assert found is not None
    return int(found[1]), int(found[2] or 0)


def _manifest(checkpoint: Checkpoint, files: Mapping[str, Any]) -> bytes:
    values = {
        "format_version": FORMAT_VERSION,
        "step": checkpoint.step,
        "epoch": checkpoint.epoch,
        "num_workers": checkpoint.num_workers,
        "job": dict(checkpoint.job),
        "files": files,
        "values": dict(checkpoint.state.values),
        "extra": dict(checkpoint.extra),
    }
    try:
        return json.dumps(values, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise InputError(
            f"checkpoint of step {checkpoint.step} holds a value that is not JSON: {error}"
        ) from error


def _digest_line(digest: str) -> bytes:
    """As the ``sha256sum`` command writes it, so that ``sha256sum -c`` can check a checkpoint by hand."""
    return f"{digest}  {MANIFEST_NAME}\n".encode()


def _read(path: Path, *, attached: bool = True) -> Checkpoint:
    text = _read_file(path / MANIFEST_NAME)
    if _read_file(path / DIGEST_NAME) != _digest_line(hashlib.sha256(text).hexdigest()):
        raise _Damaged(f"{MANIFEST_NAME} does not have the digest in {DIGEST_NAME}")
    try:
        manifest = json.loads(text)
        version = manifest["format_version"]
        if version != FORMAT_VERSION:
            raise InputError(
                f"checkpoint {path} has format version {version}, this program reads {FORMAT_VERSION}",
                hint="resume with the version of leptonai that wrote it",
            )
        state_file = _read_file(path / STATE_NAME, manifest["files"][STATE_NAME])
        for name in manifest["files"].keys() - {STATE_NAME} if attached else ():
            _check_file(path / name, manifest["files"][name])
        if _NAME.fullmatch(path.name) and manifest["step"] != _position(path.name)[0]:
            raise _Damaged(f"its manifest is of step {manifest['step']}")
        return Checkpoint(
            step=manifest["step"],
            epoch=manifest["epoch"],
            job=manifest["job"],
            num_workers=manifest["num_workers"],
            state=LearnerState(tensors=_tensors(state_file), values=manifest["values"]),
            extra=manifest["extra"],
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        # Unreachable by chance, since the digest fits: someone wrote it so.
        raise _Damaged(f"{MANIFEST_NAME} is not a manifest ({error!r})") from error


def _tensors(file: bytearray) -> Mapping[str, Any]:
    try:
        return decode_tensors(file)
    except InputError as error:
        raise _Damaged(f"{STATE_NAME}: {error.message}") from error


def _read_file(path: Path, expected: Mapping[str, Any] | None = None) -> bytearray:
    """All bytes of a file, hashed while they are read and compared with what the manifest says, if given.

    A bytearray, not bytes: frameworks take it over as a tensor's memory without a copy or a warning.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            contents = bytearray(os.fstat(file.fileno()).st_size)
            if expected is not None and len(contents) != expected["size_bytes"]:
                raise _Damaged(f"{path.name} has {len(contents)} bytes, expected {expected['size_bytes']}")
            digest = hashlib.sha256()
            view = memoryview(contents)
            while len(view):
                count = file.readinto(view[:_READ_BYTES])
                if not count:
                    raise _Damaged(f"{path.name} ends {len(view)} bytes early")
                digest.update(view[:count])
                view = view[count:]
    except OSError as error:
        raise _Damaged(f"{path.name} cannot be read: {error.strerror}") from error
    if expected is not None and digest.hexdigest() != expected["sha256"]:
        raise _Damaged(f"{path.name} does not have the digest in {MANIFEST_NAME}")
    return contents


def _check_file(path: Path, expected: Mapping[str, Any]) -> None:
    """Compare a file with what the manifest says, holding a few megabytes of it at a time."""
    digest, size_bytes = hashlib.sha256(), 0
    try:
        with open(path, "rb", buffering=0) as file:
            while piece := file.read(_READ_BYTES):
                digest.update(piece)
                size_bytes += len(piece)
    except OSError as error:
        raise _Damaged(f"{path.name} cannot be read: {error.strerror}") from error
    if size_bytes != expected["size_bytes"] or digest.hexdigest() != expected["sha256"]:
        raise _Damaged(f"{path.name} does not have the digest in {MANIFEST_NAME}")


def _could_not_save(step: int, directory: Path, error: OSError) -> Fault:
    hints = {
        errno.ENOSPC: "free some space on that disk",
        errno.EDQUOT: "free some of your quota on that disk",
        errno.EROFS: "give a run directory on a disk that can be written",
        errno.EACCES: "give a run directory that you may write to",
    }
    return Fault(
        f"could not save the checkpoint of step {step} in {directory}: {error.strerror or error}",
        hint=hints.get(error.errno or 0),
    )
