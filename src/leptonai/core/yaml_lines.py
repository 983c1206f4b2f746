"""YAML text into plain values that remember their lines.

The YAML accepted is the plain core of version 1.2: ``yes``, ``no`` and ``010`` are text, a key may appear
once, and there are no aliases and no tags, so that a small file cannot become a large or a strange value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

At = tuple[str | int, ...]
"""Where in a file: keys and list positions from the top, such as ``("nodes", 0, "address")``."""

MAX_DEPTH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing wrong with a file; ``line`` (1-based) where it is known better than from ``at``."""

    at: At
    message: str
    hint: str | None = None
    line: int | None = None


@dataclass(slots=True)
class LinedValues:
    """What a file holds: dictionaries, tuples, text, numbers, booleans and None.

    ``lines`` has the line of every key and list item; ``problems`` what is wrong with the file as YAML.
    """

    value: Any = None
    lines: dict[At, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line_of(self, at: At) -> int:
        """Line of the nearest thing at or around ``at``."""
        while at and at not in self.lines:
            at = at[:-1]
        return self.lines.get(at, 1)


def load_lines(text: str) -> LinedValues:
    """Read YAML text; what cannot be read at all becomes one problem and the value None.

    >>> found = load_lines("nodes:\\n  - name: a")
    >>> found.value, found.lines[("nodes", 0, "name")]
    ({'nodes': ({'name': 'a'},)}, 2)
    """
    found = LinedValues()
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is not None:
                found.value = _value(loader, node, (), found)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = ", ".join(filter(None, (error.context, error.problem)))
        found.problems.append(
            Problem(at=(), message=f"not accepted as YAML: {reason}", line=mark.line + 1 if mark else 1)
        )
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        found.problems.append(
            Problem(at=(), message=f"holds the forbidden character {_shown(error.character)}", line=line)
        )
    return found


class _Loader(yaml.SafeLoader):
    """SafeLoader with the types of YAML 1.2's core schema, no aliases and bounded depth."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 (the base class declares it so)
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases are not accepted, repeat the value", mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, f"nested deeper than {MAX_DEPTH} levels", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_IMPLICIT = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(?:0|[1-9][0-9]*)(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|[-+]?\.[0-9]+(?:[eE][-+]?[0-9]+)?",
     list("-+.0123456789")),
)  # fmt: skip
for _name, _pattern, _first in _IMPLICIT:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"^(?:{_pattern})$"), _first)


def _value(loader: _Loader, node: yaml.Node, at: At, found: LinedValues) -> Any:
    found.lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
        return _mapping(loader, node, at, found)
    if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        return tuple(_value(loader, item, (*at, index), found) for index, item in enumerate(node.value))
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if not isinstance(node, yaml.ScalarNode) or kind not in ("null", "bool", "int", "float", "str"):
        found.problems.append(
            Problem(at=at, message=f"the tag {node.tag!r} is not accepted", hint="remove it")
        )
        return None
    return _scalar(kind, str(node.value), at, found)


def _scalar(kind: str, text: str, at: At, found: LinedValues) -> str | int | float | bool | None:
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    try:
        if kind == "int":
            return int(text)
        return float(text) if kind == "float" else text
    except ValueError:
        # A tag such as !!int before text, or more digits than Python converts.
        found.problems.append(Problem(at=at, message=f"{text[:40]!r} cannot be read as a number"))
        return None


def _shown(character: str | int) -> str:
    return ascii(chr(character) if isinstance(character, int) else character)


def _mapping(loader: _Loader, node: yaml.MappingNode, at: At, found: LinedValues) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            found.problems.append(Problem(at=at, message="a key must be a plain word", line=line))
            continue
        key = str(key_node.value)
        if key in values:
            first = found.lines[(*at, key)]
            message = f"key {key!r} appears twice, first in line {first}"
            found.problems.append(Problem(at=(*at, key), message=message, hint="remove one", line=line))
            continue
        found.lines[(*at, key)] = line
        values[key] = _value(loader, value_node, (*at, key), found)
    return values
