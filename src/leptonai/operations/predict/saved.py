"""Models in a file: numbers as safetensors, all else as JSON beside them; nothing in it is ever run."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from leptonai.core.disk import write_atomically
from leptonai.core.errors import InputError

T = TypeVar("T")
FORMAT = "lepton-model/1"
MOST_BYTES = 1 << 30
_ARRAY = "array"


def save(value: Any, path: Path) -> None:
    """Write a dataclass of arrays, plain values, tuples and other such dataclasses; all of it or nothing.

    Raises:
        InputError: the file cannot be written.
    """
    from safetensors.numpy import save as to_bytes

    arrays: dict[str, NDArray[Any]] = {}
    facts = _packed(value, "", arrays)
    body = json.dumps({"format": FORMAT, "kind": type(value).__name__, "facts": facts}, allow_nan=False)
    try:
        write_atomically(path, to_bytes(arrays, metadata={"leptonai": body}))
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def load(kind: type[T], path: Path) -> T:
    """Read what :func:`save` wrote.

    Raises:
        InputError: there is no such file, it is none of ours, of another kind, or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path}: is larger than {MOST_BYTES >> 30} GiB, which no model is")
        with safe_open(path, framework="numpy") as file:
            body = json.loads((file.metadata() or {}).get("leptonai", "{}"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: there is no such file", hint="fit a model first: lepton predict fit"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (SafetensorError, json.JSONDecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is no saved model, or is damaged") from error
    if not isinstance(body, Mapping) or body.get("format") != FORMAT or body.get("kind") != kind.__name__:
        raise InputError(f"{path}: holds no {kind.__name__} of the format {FORMAT}")
    try:
        made = _unpacked(kind, body["facts"], "", arrays)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: the model is damaged: {error}") from error
    return typing.cast(T, made)


def _packed(value: Any, at: str, arrays: dict[str, NDArray[Any]]) -> Any:
    if isinstance(value, np.ndarray):
        arrays[at] = np.ascontiguousarray(value)
        return _ARRAY
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            each.name: _packed(getattr(value, each.name), f"{at}.{each.name}", arrays)
            for each in dataclasses.fields(value)
            if not each.name.startswith("_")
        }
    if isinstance(value, tuple):
        return [_packed(item, f"{at}.{number}", arrays) for number, item in enumerate(value)]
    return value


def _unpacked(hint: Any, value: Any, at: str, arrays: Mapping[str, NDArray[Any]]) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if value == _ARRAY and (origin is np.ndarray or "ndarray" in str(hint)):
        return np.asarray(arrays[at])
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{at.lstrip('.')}: expected a list")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        return tuple(
            _unpacked(inner, item, f"{at}.{number}", arrays)
            for number, (inner, item) in enumerate(zip(kinds, value, strict=True))
        )
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = typing.get_type_hints(hint)
        given = {
            each.name: _unpacked(hints[each.name], value[each.name], f"{at}.{each.name}", arrays)
            for each in dataclasses.fields(hint)
            if not each.name.startswith("_")
        }
        return typing.cast(Callable[..., Any], hint)(**given)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and not isinstance(value, hint):
        raise ValueError(f"{at.lstrip('.')}: expected {hint.__name__}, found {type(value).__name__}")
    return value
