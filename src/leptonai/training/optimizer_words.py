"""Optimisers as JSON-ready values, for a process that has no job file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leptonai.core.errors import InputError
from leptonai.core.values import value_from_json, value_to_json
from leptonai.training.optimizers import SGD, Adagrad, Adam, AdamW, Lamb, Optimizer

_KINDS: Mapping[str, type[Optimizer]] = {kind.__name__: kind for kind in (SGD, Adam, AdamW, Adagrad, Lamb)}


def optimizer_to_json(optimizer: Optimizer) -> dict[str, Any]:
    """The optimiser as JSON-ready values.

    >>> optimizer_to_json(SGD(lr=0.1))["kind"]
    'SGD'
    """
    return {"kind": type(optimizer).__name__, **value_to_json(optimizer)}


def optimizer_from_json(values: Mapping[str, Any]) -> Optimizer:
    """Inverse of :func:`optimizer_to_json`.

    Raises:
        InputError: it is no optimiser of ours.

    >>> optimizer_from_json(optimizer_to_json(SGD(lr=0.1, momentum=0.9)))
    SGD(lr=0.1, momentum=0.9, nesterov=False, weight_decay=0.0)
    """
    kind = _KINDS.get(str(values.get("kind")))
    if kind is None:
        raise InputError(f"unknown optimizer {values.get('kind')!r}", hint=f"one of {', '.join(_KINDS)}")
    return value_from_json(kind, values)
