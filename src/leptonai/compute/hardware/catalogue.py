"""The hardware catalogue: what is known of devices and of machines for rent, a person's own files on top."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType

from leptonai.compute.hardware.entries import AcceleratorEntry, Instance, Source
from leptonai.compute.hardware.hardware_file import HardwareFile, SourceOf, key
from leptonai.core.errors import InputError
from leptonai.core.files import read_yaml

BUILT_IN_FILES = ("accelerators.json", "instances.json")
FILE_ENDINGS = (".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """Accelerators and instances by name.

    Args:
        accelerators: by their own name.
        instances: by their own name.
    """

    accelerators: Mapping[str, AcceleratorEntry]
    instances: Mapping[str, Instance]

    def accelerator(self, name: str) -> AcceleratorEntry:
        """The accelerator of this name or alias.

        Raises:
            InputError: there is none; the nearest names are offered.
        """
        if (found := _named(self.accelerators, name)) is not None:
            return found
        raise _unknown("accelerator", name, self.accelerators)

    def instance(self, name: str) -> Instance:
        """The instance of this name.

        Raises:
            InputError: there is none; the nearest names are offered.
        """
        if (found := self.instances.get(key(name))) is not None:
            return found
        raise _unknown("instance", name, self.instances)

    def find(self, name: str) -> AcceleratorEntry | Instance:
        """The accelerator or instance of this name.

        Raises:
            InputError: there is neither; the nearest names are offered.
        """
        found = _named(self.accelerators, name) or self.instances.get(key(name))
        if found is None:
            raise _unknown("hardware", name, {**self.accelerators, **self.instances})
        return found


def find(name: str) -> AcceleratorEntry:
    """The accelerator of this name or alias in the catalogue that comes with the package.

    Raises:
        InputError: there is none; the nearest names are offered.

    >>> find("H100").peak("bf16").value
    989400000000000.0
    """
    return load_catalogue().accelerator(name)


def load_catalogue(extra: tuple[Path, ...] = ()) -> Catalogue:
    """The catalogue that comes with the package, with the entries of these files over it.

    Args:
        extra: files (YAML or JSON), later ones win; an entry whose name is known replaces that one.

    Raises:
        InputError: a file is missing or wrong (place, message and hint), or an instance has an unknown accelerator.
    """
    built_in = _built_in()
    if not extra:
        return built_in
    accelerators, instances = dict(built_in.accelerators), dict(built_in.instances)
    for path in extra:
        _add(read_yaml(path, HardwareFile), str(path), accelerators, instances)
    return Catalogue(accelerators=MappingProxyType(accelerators), instances=MappingProxyType(instances))


def catalogue_files(home: Path) -> tuple[Path, ...]:
    """A person's own files: those in the folder ``hardware`` of their home directory, by name.

    Args:
        home: the directory where the register of runs lives; it need not exist.
    """
    folder = home / "hardware"
    if not folder.is_dir():
        return ()
    return tuple(sorted(path for path in folder.iterdir() if path.suffix in FILE_ENDINGS))


@cache
def _built_in() -> Catalogue:
    accelerators: dict[str, AcceleratorEntry] = {}
    instances: dict[str, Instance] = {}
    folder = resources.files("leptonai.compute.hardware").joinpath("data")
    for name in BUILT_IN_FILES:
        # Our own files are checked by tests, so the fast reader that knows no lines is enough.
        file = HardwareFile.model_validate_json(folder.joinpath(name).read_bytes())
        _add(file, name, accelerators, instances)
    return Catalogue(accelerators=MappingProxyType(accelerators), instances=MappingProxyType(instances))


def _add(
    file: HardwareFile,
    where: str,
    accelerators: dict[str, AcceleratorEntry],
    instances: dict[str, Instance],
) -> None:
    """Put a file's entries over those there are; instances of a replaced accelerator follow it."""
    source_of = _sources(file, where)
    for row in file.accelerators:
        entry = row.to_entry(source_of)
        accelerators[entry.name] = entry
    for name, known in list(instances.items()):
        if (entry := accelerators[known.accelerator.name]) is not known.accelerator:
            instances[name] = _with_accelerator(known, entry)
    for index, listed in enumerate(file.instances):
        found = _named(accelerators, listed.accelerator)
        if found is None:
            error = _unknown("accelerator", listed.accelerator, accelerators)
            raise InputError(f"{where}: instances[{index}].accelerator: {error.message}", hint=error.hint)
        made = listed.to_instance(found, source_of)
        instances[made.name] = made


def _with_accelerator(instance: Instance, entry: AcceleratorEntry) -> Instance:
    return dataclasses.replace(instance, accelerator=entry)


def _sources(file: HardwareFile, where: str) -> SourceOf:
    known = {name: source.to_source() for name, source in file.sources.items()}
    itself = Source(title=where, publisher="", dated="no date given")

    def source_of(name: str | None) -> Source:
        return itself if name is None else known[name]

    return source_of


def _named(accelerators: Mapping[str, AcceleratorEntry], name: str) -> AcceleratorEntry | None:
    wanted = key(name)
    if (found := accelerators.get(wanted)) is not None:
        return found
    return next((entry for entry in accelerators.values() if wanted in entry.aliases), None)


def _unknown(what: str, name: str, known: Mapping[str, AcceleratorEntry | Instance]) -> InputError:
    aliases = [
        alias for each in known.values() if isinstance(each, AcceleratorEntry) for alias in each.aliases
    ]
    near = _nearest(key(name), [*known, *aliases])
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    return InputError(f"{what} {name!r} is not in the catalogue", hint=hint)


def _nearest(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Names that begin alike or look alike, likeliest first."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=most, cutoff=0.6)
    parts = set(re.split(r"[^a-z0-9]+", name)) - {""}
    near += [each for each in names if parts & set(re.split(r"[^a-z0-9]+", each)) and each not in near]
    return near[:most]
