"""The reference of the cluster file, made from its models: ``python -m leptonai.compute.reference``."""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic.fields import FieldInfo

from leptonai.compute.cluster_file import (
    ClusterFile,
    DeviceFile,
    LinkFile,
    NodeFile,
    TopologyFile,
    WorkersFile,
)
from leptonai.compute.measured_section import MeasuredSection
from leptonai.core.fields import ByteRate, ByteSize, Duration, FlopRate
from leptonai.core.files import FileModel
from leptonai.core.units import DURATION_UNITS, FLOP_UNITS, RATE_UNITS, SIZE_UNITS

SMALLEST = """\
nodes:
  - name: laptop
workers: 2
"""

FULL = """\
name: lab
engine: local
workers: {count: 4, threads: 2, hang: 60s}
nodes:
  - name: left
    address: 127.0.0.1
    devices:
      - {kind: cpu, cores: 4, memory: 16GiB, peak: 48GFLOP/s}
  - name: right
    address: 127.0.0.1
    devices:
      - {kind: cpu, cores: 4, memory: 16GiB, peak: 48GFLOP/s}
links:
  - {between: [left, right], bandwidth: 10Gb/s, latency: 50us}
"""

NAMED = """\
nodes:
  - name: hub
  - name: a
  - name: b
topology: {kind: star, bandwidth: 1.2GB/s, latency: 20us}
workers: 3
"""

GENERATED = """\
nodes:
  - name: gpu
    count: 16
    devices:
      - {kind: gpu, count: 8, memory: 80GiB, peak: 989TFLOP/s, memory_bandwidth: 3.35TB/s}
    interconnect: 450GB/s
    interconnect_latency: 1us
    price: 24.5
topology: {kind: rail_optimised, bandwidth: 400Gb/s, latency: 600ns, radix: 64}
"""

_BEGINNING = """\
# The cluster file

<!-- Made by `python -m leptonai.compute.reference > docs/cluster-file.md`: change the models, not this. -->

A YAML file that says which machines there are and how many workers to start. Three lines are enough for one
machine; its cores are found out:"""

_RULES = """\
The file is read strictly. An unknown key, a key given twice, a value of the wrong type or without its unit,
an alias and a tag are errors; all of them are told at once, each with its line. Text needs quotes only where it
would read as a number, as `true` or `false`, or as `null`. With the local engine every node has a loopback
address: the nodes are then parts of this machine. `lepton plan` accepts other addresses too."""

_SECTIONS: Mapping[str, type[FileModel]] = {
    "The file": ClusterFile,
    "workers": WorkersFile,
    "nodes": NodeFile,
    "devices": DeviceFile,
    "links": LinkFile,
    "topology": TopologyFile,
}
_UNITS = {ByteSize: "size", ByteRate: "rate", FlopRate: "FLOP/s", Duration: "duration"}
_UNIT_TABLES = {
    "size": (SIZE_UNITS, "80GiB", "`KB` is 1000 bytes, `KiB` 1024."),
    "rate": (RATE_UNITS, "10Gb/s", "`b` is a bit, `B` a byte."),
    "FLOP/s": (FLOP_UNITS, "312TFLOP/s", "Floating-point operations per second."),
    "duration": (DURATION_UNITS, "50us", ""),
}


def reference() -> str:
    """The whole page, as Markdown.

    >>> reference().splitlines()[0]
    '# The cluster file'
    """
    return "\n".join(_lines()).rstrip() + "\n"


def _lines() -> Iterator[str]:
    yield from (_BEGINNING, "", *_example(SMALLEST))
    yield from ("Everything that can be said:", "", *_example(FULL))
    yield from ("Links in a named shape:", "", *_example(NAMED))
    yield from ("Many equal nodes below generated switches:", "", *_example(GENERATED))
    yield from (_RULES, "")
    for title, model in _SECTIONS.items():
        yield from _section(title, model)
    yield from ("## Units", "", "| kind | units | example | |", "|---|---|---|---|")
    for name, (units, example, remark) in _UNIT_TABLES.items():
        yield f"| {name} | {', '.join(f'`{unit}`' for unit in units)} | `{example}` | {remark} |"


def _example(text: str) -> tuple[str, ...]:
    return ("```yaml", text.rstrip(), "```", "")


def _section(title: str, model: type[FileModel]) -> Iterator[str]:
    yield from (f"## {title}", "", (model.__doc__ or "").strip(), "")
    yield from ("| key | value | default | meaning |", "|---|---|---|---|")
    hints = typing.get_type_hints(model, include_extras=True)
    for name, field in model.model_fields.items():
        value = _words(hints[name]) + _range(field)
        yield f"| `{name}` | {value} | {_default(hints[name], field)} | {field.description} |"
    yield ""


def _words(hint: Any) -> str:
    """What a person writes for a type."""
    arguments = typing.get_args(hint)
    if unit := _unit(hint):
        return f"[{unit}](#units)"
    match typing.get_origin(hint):
        case typing.Annotated:
            return _words(arguments[0])
        case typing.Literal:
            return " or ".join(f"`{choice}`" for choice in arguments)
        case typing.Union | types.UnionType:
            return " or ".join(_words(each) for each in arguments if each is not type(None))
        case origin if origin is tuple:
            return (
                f"list of {_words(arguments[0])}"
                if arguments[-1] is ...
                else f"list of {len(arguments)} texts"
            )
    if hint is MeasuredSection:
        return "[section](formats/cluster-measured.md)"
    section = next((title for title, model in _SECTIONS.items() if model is hint), None)
    return (
        f"[{section}](#{section})" if section else {int: "whole number", float: "number", str: "text"}[hint]
    )


def _unit(hint: Any) -> str | None:
    return next((name for kind, name in _UNITS.items() if hint == kind), None)


def _range(field: FieldInfo) -> str:
    for limit in field.metadata:
        if (least := getattr(limit, "ge", None)) is not None:
            return f", at least {least}"
        if (bound := getattr(limit, "gt", None)) is not None:
            return f", more than {bound}"
    return ""


def _default(hint: Any, field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is None or value == ():
        return ""
    if isinstance(value, WorkersFile):
        value = value.count
    return f"`{value:g}s`" if _unit(hint) == "duration" else f"`{value}`"


if __name__ == "__main__":
    sys.stdout.write(reference())
