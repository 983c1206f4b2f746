"""``cluster.measured.yaml``: a cluster file with a section that says what a probe found on this machine."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field

from leptonai.compute.cluster_file import ClusterFile
from leptonai.compute.measured import Measured
from leptonai.compute.measured_section import MeasuredSection, section_text
from leptonai.core.errors import InputError
from leptonai.core.files import parse_yaml, read_text, write_atomically
from leptonai.core.yaml_lines import load_lines

DEFAULT_NAME = "cluster.measured.yaml"
# What stands for the cluster where nobody wrote a file: this machine, with its cores.
THIS_MACHINE = "name: this-machine\nnodes:\n  - name: here\n"
# The section and what belongs to it: all lines up to the next key of the file's top level.
_SECTION = re.compile(r"^measured:.*?(?=^[^\s#]|\Z)", re.MULTILINE | re.DOTALL)


class MeasuredClusterFile(ClusterFile):
    """A cluster file that must hold what was measured."""

    measured: MeasuredSection = Field(description="What `lepton cluster probe` found on this machine.")


def read_measured(path: Path) -> Measured:
    """What a measured cluster file says was measured.

    Raises:
        InputError: the file is missing or has no such section, or any problem in it, with line and hint.
    """
    text = read_text(path)
    if not holds_measurements(text):
        raise InputError(
            f"{path}: holds no measurements: key 'measured' is missing",
            hint="measure this machine with: lepton cluster probe",
        )
    return parse_yaml(text, where=str(path), model=MeasuredClusterFile).measured.to_measured()


def write_measured(path: Path, measured: Measured, *, cluster_text: str = THIS_MACHINE) -> None:
    """Write a cluster file with what was measured, all or not at all.

    Args:
        path: an earlier file there is replaced if it holds measurements too, else refused.
        measured: what was found.
        cluster_text: a cluster file's text, kept as it is; measurements in it are replaced.

    Raises:
        InputError: ``path`` holds something else or cannot be written, or the text is no cluster file.
    """
    check_replaceable(path)
    write_atomically(path, measured_text(measured, cluster_text=cluster_text).encode())


def check_replaceable(path: Path) -> None:
    """Nothing but an earlier measured file may be replaced.

    Raises:
        InputError: there is something else at ``path``, or no directory for it.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path}: the directory {path.parent} does not exist")
    if path.exists() and not (path.is_file() and holds_measurements(read_text(path))):
        raise InputError(
            f"{path}: is not a file of measurements, so it is not overwritten",
            hint="name another file with --out",
        )


def measured_text(measured: Measured, *, cluster_text: str = THIS_MACHINE) -> str:
    """The whole file: the cluster's text, then what was measured.

    Raises:
        InputError: the text cannot take a section at its end, as one in braces cannot.
    """
    text = _SECTION.sub("", cluster_text).rstrip("\n") + "\n" + section_text(measured)
    try:
        parse_yaml(text, where="the cluster file with its measurements", model=MeasuredClusterFile)
    except InputError as error:
        raise InputError(
            f"the measurements cannot be added to the cluster file: {error.message}",
            hint=error.hint or "write its keys on lines of their own, without braces around all",
        ) from error
    return text


def holds_measurements(text: str) -> bool:
    """Whether YAML text has the key ``measured`` at its top level."""
    if not re.search(r"^measured:", text, re.MULTILINE):
        return False
    found = load_lines(text).value
    return isinstance(found, dict) and "measured" in found
