"""Files into values: YAML read strictly, every problem told at once.

What YAML is accepted: :mod:`leptonai.core.yaml_lines`.
"""

from __future__ import annotations

import difflib
import os
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from leptonai.core.disk import write_atomically as write_atomically
from leptonai.core.errors import InputError
from leptonai.core.yaml_lines import At, LinedValues, load_lines
from leptonai.core.yaml_lines import Problem as Problem

MAX_FILE_BYTES = 1 << 20


class FileModel(BaseModel):
    """Base of every model of a file: unknown keys and wrong types are problems, nothing is converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @classmethod
    def cross_check(cls, raw: Mapping[str, Any]) -> Iterator[Problem]:
        """Problems between keys, looked for in the raw values even when single keys are wrong as well.

        ``raw`` holds whatever the file holds, so an override must not rely on any type. Lists are tuples.
        """
        yield from ()


M = TypeVar("M", bound=FileModel)


def problem(message: str, *, hint: str | None = None) -> PydanticCustomError:
    """What a field validator raises so that :func:`parse_yaml` can tell place, message and hint."""
    # The message must not be a format string of pydantic's: it may hold braces from the file.
    return PydanticCustomError("lepton", "{message}", {"message": message, "hint": hint})


def read_yaml(path: Path, model: type[M]) -> M:
    """Read one YAML file into ``model``.

    Raises:
        InputError: the file is missing, a directory, larger than 1 MiB or not UTF-8,
            or :func:`parse_yaml` finds problems.
    """
    return parse_yaml(read_text(path), where=str(path), model=model)


def read_text(path: Path, *, max_bytes: int = MAX_FILE_BYTES) -> str:
    """The UTF-8 text of a file that a person named.

    Raises:
        InputError: it is missing, a directory, not readable, larger than ``max_bytes`` or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file", hint=_similar_file(path)) from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a directory, expected a file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path}: cannot be read: {reason}") from error
    if len(data) > max_bytes:
        raise InputError(f"{path}: is larger than {max_bytes} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: is not UTF-8 text", hint="save the file as UTF-8") from None


def parse_yaml(text: str, *, where: str, model: type[M]) -> M:
    """Check YAML text against ``model``.

    Args:
        text: the YAML.
        where: name of its source, which begins every problem.
        model: what it must be.

    Raises:
        InputError: with every problem found, each as ``where:line: message`` and its hint.

    >>> class Greeting(FileModel):
    ...     name: str
    >>> parse_yaml("name: Ada", where="greeting.yaml", model=Greeting).name
    'Ada'
    >>> parse_yaml("nam: Ada", where="greeting.yaml", model=Greeting)
    Traceback (most recent call last):
        ...
    leptonai.core.errors.InputError: greeting.yaml: 2 problems
      greeting.yaml:1: key 'name' is missing
      greeting.yaml:1: unknown key 'nam'
        hint: did you mean 'name'?
    """
    found = load_lines(text)
    if found.value is None and found.problems:
        raise _all_problems(where, found, found.problems)
    raw = found.value
    if not isinstance(raw, dict):
        holds = "is empty" if raw is None else f"holds {_kind(raw)}"
        raise InputError(
            f"{where}:1: the file {holds}", hint=f"expected keys: {', '.join(model.model_fields)}"
        )
    problems = list(found.problems)
    value: M | None = None
    try:
        value = model.model_validate(raw)
    except ValidationError as error:
        unreadable = {each.at for each in found.problems}
        for details in error.errors(include_url=False):
            # A value that could not be read stands as None and has been told already.
            if details["input"] is not None or details["loc"] not in unreadable:
                problems.append(_explain(details, model))
    problems += model.cross_check(raw)
    if value is None or problems:
        raise _all_problems(where, found, problems)
    return value


def _all_problems(where: str, found: LinedValues, problems: list[Problem]) -> InputError:
    lines = [(each.line or found.line_of(each.at), each) for each in problems]
    lines.sort(key=lambda pair: pair[0])
    if len(lines) == 1:
        line, only = lines[0]
        return InputError(f"{where}:{line}: {only.message}", hint=only.hint)
    texts = [f"{where}: {len(lines)} problems"]
    for line, each in lines:
        texts.append(f"  {where}:{line}: {each.message}")
        if each.hint:
            texts.append(f"    hint: {each.hint}")
    return InputError("\n".join(texts))


def _explain(details: ErrorDetails, model: type[BaseModel]) -> Problem:
    """One of pydantic's errors in our words."""
    at, kind, context = details["loc"], details["type"], details.get("ctx", {})
    inside = _path(at[:-1])
    if kind == "extra_forbidden":
        known = _keys(model, at[:-1])
        return Problem(at=at, message=f"unknown key {at[-1]!r}{inside}", hint=_nearest(str(at[-1]), known))
    if kind == "missing" and isinstance(at[-1], int):
        return Problem(at=at, message=f"item {at[-1] + 1} is missing{inside}")
    if kind == "missing":
        return Problem(at=at, message=f"key {at[-1]!r} is missing{inside}")
    if kind == "lepton":
        return Problem(at=at, message=f"{_dotted(at)}: {context['message']}", hint=context["hint"])
    if kind == "literal_error":
        known = _choices(context["expected"])
        message = f"{_dotted(at)}: unknown value {details['input']!r}"
        return Problem(at=at, message=message, hint=_nearest(str(details["input"]), known))
    words = {"model": ", ".join(_keys(model, at)), **context}
    expected = _EXPECTED[kind].format_map(words) if kind in _EXPECTED else details["msg"]
    hint = "put it in quotes" if kind == "string_type" and isinstance(details["input"], int | float) else None
    return Problem(at=at, message=f"{_dotted(at)}: {expected}, found {_kind(details['input'])}", hint=hint)


_EXPECTED: Mapping[str, str] = {
    "string_type": "expected text",
    "string_too_short": "expected text that is not empty",
    "int_type": "expected a whole number",
    "float_type": "expected a number",
    "bool_type": "expected true or false",
    "tuple_type": "expected a list",
    "too_short": "expected at least {min_length} items",
    "too_long": "expected at most {max_length} items",
    "model_type": "expected keys {model}",
    "greater_than": "expected more than {gt}",
    "greater_than_equal": "expected at least {ge}",
    "less_than": "expected less than {lt}",
    "less_than_equal": "expected at most {le}",
}
"""Our words for pydantic's; a kind that is not here keeps pydantic's own sentence."""


def _dotted(at: At) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in at)
    return text.removeprefix(".")


def _path(at: At) -> str:
    return f" in {_dotted(at)}" if at else ""


def _kind(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case dict():
            return "keys and values"
        case tuple() | list():
            return "a list"
        case _:
            text = repr(value)
            return text if len(text) <= 40 else f"{text[:40]}..."


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"one of {', '.join(known)}"


def _choices(expected: str) -> list[str]:
    """The words in pydantic's list of them: ``'a', 'b' or 'c'``."""
    return re.findall(r"'([^']*)'", expected)


def _keys(model: type[BaseModel], at: At) -> list[str]:
    """The keys that the model has at that place."""
    found: type[BaseModel] | None = model
    for part in at:
        if isinstance(part, str) and found is not None and part in found.model_fields:
            found = _model_in(found.model_fields[part].annotation)
    return list(found.model_fields) if found is not None else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The first model anywhere inside a type such as ``tuple[Node, ...] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, typing.get_args(annotation))), None)


def _similar_file(path: Path) -> str | None:
    try:
        names = os.listdir(path.parent)
    except OSError:
        return f"the directory {path.parent} does not exist"
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.7)
    return f"did you mean {path.parent / near[0]}?" if near else None
