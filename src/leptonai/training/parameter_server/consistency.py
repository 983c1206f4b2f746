"""How far workers may drift apart: one setting, a value each, with exact semantics.

Two families. In the *gradient* family a worker pushes the gradient of one piece of data and the server holds
the optimiser. In the *local* family a worker takes ``steps`` steps of its own optimiser and then pushes how
far it moved, which the server applies with an outer rule. A run may switch within its family, not across:
the optimiser's state lives on different sides.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

from leptonai.core.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Bsp:
    """Bulk synchronous: every step sums all workers' gradients in rank order, then all go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ssp:
    """Stale synchronous: the step the fastest worker is in minus the slowest's never exceeds ``staleness``.

    Source: Ho et al. 2013.
    """

    staleness: int

    def __post_init__(self) -> None:
        _whole(self, "staleness", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asp:
    """Asynchronous: each gradient is applied as it comes, nobody waits (Dean et al. 2012)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """Synchronous with ``workers`` spare: a step takes all but that many gradients, the first to come.

    The examples of gradients that came too late are dealt again within the epoch.
    Source: Chen et al. 2016 (backup workers); n-softsync of Zhang et al. 2016.
    """

    workers: int = 1

    def __post_init__(self) -> None:
        _whole(self, "workers", 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSgd:
    """Every worker takes ``steps`` steps alone, then all take over the mean of their weights (Stich 2019)."""

    steps: int

    def __post_init__(self) -> None:
        _whole(self, "steps", 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Diloco:
    """``steps`` local steps, then an outer SGD step with Nesterov momentum on the mean movement.

    Source: Douillard et al. 2023 (arXiv 2311.08105), whose outer lr and momentum are the defaults.
    """

    steps: int = 100
    lr: float = 0.7
    momentum: float = 0.9

    def __post_init__(self) -> None:
        _whole(self, "steps", 1)
        _outer(self.lr, self.momentum)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingDiloco:
    """DiLoCo that synchronises one of ``fragments`` parts of the weights at a time, while training goes on.

    Each fragment is synchronised every ``steps`` steps, the fragments evenly apart. What a fragment's
    synchronisation brings is mixed in ``overlap`` steps later, at most ``steps / fragments``: ``mixing`` of the
    worker's own weights stays. Pushes are a fragment each; a pull brings all weights.

    Args:
        bits: 4 or 8: of each number on the wire; 0: float32.

    Source: Douillard et al. 2025 (arXiv 2501.18512).
    """

    steps: int = 100
    fragments: int = 4
    overlap: int = 1
    bits: int = 4
    mixing: float = 0.5
    lr: float = 0.7
    momentum: float = 0.9

    def __post_init__(self) -> None:
        _whole(self, "steps", 1)
        _whole(self, "fragments", 1)
        _whole(self, "overlap", 0)
        _outer(self.lr, self.momentum)
        if self.bits not in (0, 4, 8):
            raise InputError(f"streaming_diloco: expected bits to be 0, 4 or 8, found {self.bits}")
        if not 0.0 <= self.mixing < 1.0:
            raise InputError(f"streaming_diloco: expected 0 <= mixing < 1, found {self.mixing}")
        if self.fragments > self.steps or self.overlap > self.steps // self.fragments:
            raise InputError(
                "streaming_diloco: expected fragments <= steps and overlap <= steps / fragments, "
                f"found {self.fragments} fragments, overlap {self.overlap}, {self.steps} steps",
                hint="one fragment is under way at a time",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class AsyncDiloco:
    """DiLoCo without waiting: each worker's movement is applied as it comes, the older the smaller.

    A movement computed from weights that are ``age`` outer steps old counts ``exp(-age_decay * age)``.
    Source: after Liu et al. 2024 (arXiv 2401.09135), with an exponential discount by age.
    """

    steps: int = 100
    lr: float = 0.7
    momentum: float = 0.9
    age_decay: float = 0.1

    def __post_init__(self) -> None:
        _whole(self, "steps", 1)
        _outer(self.lr, self.momentum)
        if not self.age_decay >= 0.0:
            raise InputError(f"async_diloco: expected age_decay >= 0, found {self.age_decay}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ElasticAveraging:
    """Workers explore alone; every ``steps`` steps each is drawn to a centre and the centre to it, by ``alpha``.

    Source: Zhang, Choromanska & LeCun 2015, asynchronous EASGD.
    """

    steps: int = 10
    alpha: float = 0.125

    def __post_init__(self) -> None:
        _whole(self, "steps", 1)
        if not 0.0 < self.alpha < 1.0:
            raise InputError(f"elastic_averaging: expected 0 < alpha < 1, found {self.alpha}")


GradientMode = Bsp | Ssp | Asp | Backup
LocalMode = LocalSgd | Diloco | StreamingDiloco | AsyncDiloco | ElasticAveraging
Consistency = GradientMode | LocalMode

_MODES: dict[str, tuple[type[Consistency], str | None]] = {
    # name: (value, the parameter that may be given without its name)
    "bsp": (Bsp, None),
    "ssp": (Ssp, "staleness"),
    "asp": (Asp, None),
    "backup": (Backup, "workers"),
    "local_sgd": (LocalSgd, "steps"),
    "diloco": (Diloco, "steps"),
    "streaming_diloco": (StreamingDiloco, "steps"),
    "async_diloco": (AsyncDiloco, "steps"),
    "elastic_averaging": (ElasticAveraging, "steps"),
}


def is_local(mode: Consistency) -> bool:
    """Whether workers hold the optimiser and push how far they moved."""
    return isinstance(mode, LocalSgd | Diloco | StreamingDiloco | AsyncDiloco | ElasticAveraging)


def is_grouped(mode: Consistency) -> bool:
    """Whether pushes of several workers are applied together, as one update."""
    return isinstance(mode, Bsp | Backup | LocalSgd | Diloco | StreamingDiloco)


def parse_consistency(text: str) -> Consistency:
    """The setting as written in a job file or on the command line.

    Raises:
        InputError: the mode is unknown or an argument does not fit.

    >>> parse_consistency("ssp(3)")
    Ssp(staleness=3)
    >>> parse_consistency("diloco(100, lr=0.5)")
    Diloco(steps=100, lr=0.5, momentum=0.9)
    """
    name, _, rest = text.strip().partition("(")
    if name not in _MODES:
        raise InputError(f"consistency: unknown mode {name!r}", hint=f"one of {', '.join(_MODES)}")
    kind, positional = _MODES[name]
    try:
        call = ast.parse(f"f({rest}" if rest else "f()", mode="eval").body
        if not isinstance(call, ast.Call) or len(call.args) > (positional is not None):
            raise ValueError
        values = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
        for argument in call.args:
            values[str(positional)] = ast.literal_eval(argument)
        return kind(**values)
    except (SyntaxError, ValueError, TypeError) as error:
        names = ", ".join(kind.__dataclass_fields__)
        raise InputError(
            f"consistency: cannot read {text!r}",
            hint=f"{name} takes {names}" if names else f"{name} takes nothing in brackets",
        ) from error


def consistency_text(mode: Consistency) -> str:
    """Inverse of :func:`parse_consistency`.

    >>> consistency_text(Ssp(staleness=3))
    'ssp(staleness=3)'
    """
    name = next(name for name, (kind, _) in _MODES.items() if kind is type(mode))
    inside = ", ".join(f"{field}={getattr(mode, field)!r}" for field in mode.__dataclass_fields__)
    return f"{name}({inside})" if inside else name


def _whole(value: object, name: str, smallest: int) -> None:
    found = getattr(value, name)
    if type(found) is not int or found < smallest:
        raise InputError(
            f"{type(value).__name__.lower()}: expected {name} to be a whole number >= {smallest}, found {found!r}"
        )


def _outer(lr: float, momentum: float) -> None:
    if not (lr > 0.0 and 0.0 <= momentum < 1.0):
        raise InputError(f"outer step: expected lr > 0 and 0 <= momentum < 1, found {lr} and {momentum}")
