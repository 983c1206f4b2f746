"""Known transformers by name, and transformers written as numbers, as people name them to commands."""

from __future__ import annotations

import difflib
import json
import re
from functools import cache
from importlib import resources

from leptonai.compute.transformer import Transformer
from leptonai.core.errors import InputError

NUMBERS = ("num_layers", "hidden", "num_heads", "sequence", "vocabulary", "feed_forward")
"""Order of the numbers that describe a transformer; the last may be left out."""
_HINT = "write a known name such as gpt-22b, or layers,hidden,heads,sequence,vocabulary,feed_forward"


def find_model(text: str) -> Transformer:
    """The transformer that a person means.

    Args:
        text: a name from :func:`model_names`, or five or six whole numbers with commas between them in the order of
            :data:`NUMBERS`.

    Raises:
        InputError: the name is not known (the nearest ones are offered), or a number is wrong.

    >>> find_model("gpt-22b").num_layers
    48
    >>> find_model("24,1024,16,2048,51200").width
    4096
    """
    word = text.strip().lower()
    if "," in word:
        return _from_numbers(word)
    known = _models()
    if (found := known.get(word)) is not None:
        return found
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known names: {', '.join(known)}"
    raise InputError(f"model: {text!r} is no known model", hint=f"{hint}\n  or {_HINT}" if near else hint)


def model_names() -> tuple[str, ...]:
    """Names that :func:`find_model` knows, in the order of the file."""
    return tuple(_models())


def _from_numbers(word: str) -> Transformer:
    parts = [part.strip().replace("_", "") for part in word.split(",")]
    if len(parts) not in (len(NUMBERS) - 1, len(NUMBERS)):
        raise InputError(f"model: expected five or six numbers, found {len(parts)}", hint=_HINT)
    for name, part in zip(NUMBERS, parts, strict=False):
        if not re.fullmatch(r"[0-9]{1,9}", part):
            raise InputError(f"model: expected {name} to be a whole number, found {part!r}", hint=_HINT)
    return Transformer(**dict(zip(NUMBERS, map(int, parts), strict=False)))


@cache
def _models() -> dict[str, Transformer]:
    text = resources.files("leptonai.compute").joinpath("models.json").read_text(encoding="utf-8")
    rows = json.loads(text)["models"]
    return {row["name"]: Transformer(**{name: row[name] for name in NUMBERS if name in row}) for row in rows}
