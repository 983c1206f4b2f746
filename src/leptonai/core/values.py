"""Frozen dataclasses into JSON-ready values and back, by their annotations."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

from leptonai.core.errors import InputError

T = TypeVar("T")
_PLAIN = {int: "a whole number", str: "text", bool: "true or false", types.NoneType: "null"}


def value_to_json(value: Any) -> Any:
    """A dataclass of plain values, tuples and other dataclasses as dictionaries and lists.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Point:
    ...     at: tuple[int, ...]
    >>> value_to_json(Point((1, 2)))
    {'at': [1, 2]}
    """
    if dataclasses.is_dataclass(value):
        return {field.name: value_to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return [value_to_json(item) for item in value] if isinstance(value, tuple) else value


def value_from_json(kind: type[T], values: object) -> T:
    """Inverse of :func:`value_to_json`; unknown keys are ignored so that old readers read new files.

    Args:
        kind: a dataclass whose fields are ``int``, ``float``, ``str``, ``bool``, ``Literal``, ``X | None``,
            ``tuple[X, ...]``, ``tuple[X, Y]`` and other such dataclasses.
        values: what JSON holds.

    Raises:
        InputError: a value is missing or of the wrong type (with its place), or outside its range.
    """
    value: T = _read(kind, values, "")
    return value


def _read(hint: Any, value: Any, at: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _read_fields(hint, value, at)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = next(each for each in arguments if each is not types.NoneType)
        return None if value is None else _read(inner, value, at)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(at, "a list", value)
        if arguments[1:] != (Ellipsis,):  # a tuple of so many values, each of its own type
            if len(value) != len(arguments):
                raise _wrong(at, f"{len(arguments)} values", value)
            each = zip(arguments, value, strict=True)
            return tuple(_read(inner, item, f"{at}[{index}]") for index, (inner, item) in enumerate(each))
        return tuple(_read(arguments[0], item, f"{at}[{index}]") for index, item in enumerate(value))
    if origin is typing.Literal:
        if not isinstance(value, str) or value not in arguments:
            raise _wrong(at, f"one of {', '.join(arguments)}", value)
        return value
    if hint is float:
        if type(value) not in (int, float):
            raise _wrong(at, "a number", value)
        return float(value)
    if type(value) is not hint:
        raise _wrong(at, _PLAIN[hint], value)
    return value


def _read_fields(kind: Any, values: Any, at: str) -> Any:
    if not isinstance(values, Mapping):
        raise _wrong(at, "keys and values", values)
    found = {}
    hints = _hints(kind)
    for field in dataclasses.fields(kind):
        place = f"{at}.{field.name}" if at else field.name
        if field.name in values:
            found[field.name] = _read(hints[field.name], values[field.name], place)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InputError(f"{place}: is missing")
    return kind(**found)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _wrong(at: str, expected: str, value: object) -> InputError:
    return InputError(f"{at or 'value'}: expected {expected}, found {str(value)[:40]!r}")
