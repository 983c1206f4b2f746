"""Codecs as text: what a job file may say, and which consistency settings go with what."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Any

from leptonai.core.errors import InputError
from leptonai.training.parameter_server.codecs.base import Codec
from leptonai.training.parameter_server.codecs.blockwise import BLOCK_ELEMENTS, E3M0, INT4, INT8, Blockwise
from leptonai.training.parameter_server.codecs.float16 import BFloat16, Float16
from leptonai.training.parameter_server.codecs.one_bit import OneBit
from leptonai.training.parameter_server.codecs.power_sgd import PowerSgd, Shapes
from leptonai.training.parameter_server.codecs.sparse import RandomK, TopK
from leptonai.training.parameter_server.consistency import (
    Consistency,
    ElasticAveraging,
    LocalSgd,
    StreamingDiloco,
    consistency_text,
    is_local,
)

_ARGUMENTS: dict[str, tuple[str, ...]] = {
    # The first may be given without its name where the codec is a choice of numbers.
    "fp16": (),
    "bf16": (),
    "int8": ("block", "stochastic"),
    "int4": ("block", "stochastic"),
    "e3m0": ("block",),
    "onebit": ("block",),
    "topk": ("share",),
    "randomk": ("share", "scaled"),
    "powersgd": ("rank",),
}
_REDUCERS = ("topk", "randomk", "powersgd")
_PLAIN = ("fp16", "bf16", "int8", "int4", "e3m0")
# Orthogonal factors in four bits or one are no longer orthogonal enough to carry a gradient.
_AFTER_POWER_SGD = ("fp16", "bf16", "int8")


@dataclass(frozen=True, slots=True)
class _Stage:
    name: str
    arguments: dict[str, Any]


def parse_codec(text: str, *, seed: int = 0, shapes: Shapes = ()) -> Codec:
    """The codec that ``text`` names; a chain ``"topk(0.01)+int8"`` encodes what the first keeps by the second.

    Args:
        text: such as ``"fp16"``, ``"int8(block=512)"``, ``"int8(stochastic=True)"``, ``"randomk(0.01)"``,
            ``"powersgd(rank=2)+fp16"``.
        seed: of random choices; the decoding side needs none.
        shapes: first element and shape of the tensors in the range encoded; for powersgd, equal at both ends.

    Raises:
        InputError: a name is unknown, an argument does not fit, or the order is impossible.

    >>> parse_codec("topk(0.01)+int8").name
    'topk(0.01)+int8'
    """
    first, *rest = _stages(text)
    if first.name in _REDUCERS:
        values = _quantiser(rest[0], seed) if rest else None
        if first.name == "topk":
            return TopK(**_with(first, "share"), values=values)
        if first.name == "randomk":
            return RandomK(**_with(first, "share"), values=values, seed=seed)
        return PowerSgd(**_with(first, "rank"), shapes=shapes, values=values, seed=seed)
    return _quantiser(first, seed)


def check_codec(text: str, mode: Consistency) -> None:
    """Refuse a codec that would break what ``mode`` promises.

    Gradients may be sent by any codec: what is left out comes again, by error feedback, a step or so later.
    Movements are sent once in many steps. ``local_sgd`` takes any codec too (convergence with feedback: Basu
    et al. 2019, Qsparse-local-SGD). The DiLoCo modes take only those that send every number, rounded: a
    sparsifier's feedback would come back rounds later, and the outer momentum multiplies it up to tenfold.
    ``streaming_diloco`` has bits of its own, and ``elastic_averaging`` relies on worker and centre moving by
    the same amount. Nothing is refused for empty text.

    Raises:
        InputError: the text names no codec, or one that does not go with the mode.
    """
    if not text:
        return
    stages = _stages(text)
    parse_codec(text)
    if stages[0].arguments.get("scaled"):
        raise InputError(
            f"codec {text!r}: scaled values cannot be used with error feedback, which pushes always have",
            hint="leave scaled out",
        )
    if not is_local(mode) or isinstance(mode, LocalSgd):
        return
    setting = consistency_text(mode).partition("(")[0]
    if isinstance(mode, StreamingDiloco | ElasticAveraging):
        raise InputError(
            f"codec {text!r} does not go with {setting}",
            hint="streaming_diloco compresses by its own bits, elastic_averaging not at all",
        )
    if stages[0].name not in _PLAIN:
        raise InputError(f"codec {text!r} does not go with {setting}", hint=f"one of {', '.join(_PLAIN)}")


def mode_codec(text: str, mode: Consistency) -> str:
    """The codec of a run's pushes: the setting's own where it has one, else ``text``; empty: float32.

    ``streaming_diloco`` sends E3M0 floats for 4 bits, as its paper does, and int8 for 8.
    """
    if isinstance(mode, StreamingDiloco):
        return {0: "", 4: "e3m0", 8: "int8"}[mode.bits]
    return text


def _stages(text: str) -> list[_Stage]:
    stages = [_stage(part.strip()) for part in re.split(r"\+(?![^(]*\))", text.strip())]
    order = f"codec {text!r}: impossible order"
    reducer = stages[0].name in _REDUCERS
    if any(stage.name in _REDUCERS for stage in stages[1:]):
        raise InputError(order, hint=f"{', '.join(_REDUCERS)} can only come first, and only one of them")
    if len(stages) > 1 + reducer:
        raise InputError(order, hint="a chain is one of " + ", ".join(_REDUCERS) + ", then one other codec")
    if stages[0].name == "powersgd" and len(stages) == 2 and stages[1].name not in _AFTER_POWER_SGD:
        raise InputError(order, hint=f"after powersgd: {', '.join(_AFTER_POWER_SGD)}")
    return stages


def _stage(part: str) -> _Stage:
    name, bracket, rest = part.partition("(")
    if name not in _ARGUMENTS:
        raise InputError(f"codec: unknown name {name!r}", hint=f"one of {', '.join(_ARGUMENTS)}")
    allowed = _ARGUMENTS[name]
    try:
        call = ast.parse(f"f({rest}" if bracket else "f()", mode="eval").body
        if not isinstance(call, ast.Call) or len(call.args) > 1 or (call.args and name not in _REDUCERS):
            raise ValueError
        arguments = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
        if call.args:
            if allowed[0] in arguments:
                raise ValueError
            arguments[allowed[0]] = ast.literal_eval(call.args[0])
        if not set(arguments) <= set(allowed):
            raise ValueError
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise InputError(
            f"codec: cannot read {part!r}",
            hint=f"{name} takes {', '.join(allowed)}" if allowed else f"{name} takes nothing in brackets",
        ) from error
    return _Stage(name, arguments)


def _with(stage: _Stage, needed: str) -> dict[str, Any]:
    if needed not in stage.arguments:
        example = "powersgd(rank=2)" if stage.name == "powersgd" else f"{stage.name}(0.01)"
        raise InputError(f"codec {stage.name}: {needed} is missing", hint=f"such as {example}")
    return stage.arguments


def _quantiser(stage: _Stage, seed: int) -> Codec:
    if stage.name == "fp16":
        return Float16()
    if stage.name == "bf16":
        return BFloat16()
    if stage.name == "onebit":
        return OneBit(**stage.arguments)
    grid = {"int8": INT8, "int4": INT4, "e3m0": E3M0}[stage.name]
    block = stage.arguments.get("block", BLOCK_ELEMENTS)
    return Blockwise(grid, block=block, stochastic=stage.arguments.get("stochastic", False), seed=seed)
