"""What shall go wrong in a run, and when: a script of values. Nothing here does anything.

A *step* is counted by the process it concerns: a worker's completed steps, a server's shard version. A fault
fires once a run, at the first step its process reaches that is not before its own, and not again after a
restart. The text form is in :mod:`leptonai.core.fault_text`; :mod:`leptonai.launch.saboteur` enacts scripts.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Literal

from leptonai.core.errors import InputError
from leptonai.core.values import value_from_json, value_to_json

Role = Literal["worker", "server"]
Kind = Literal["kill", "stop", "slow", "cut", "drop", "corrupt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """SIGKILL at step ``at``, ``delay_seconds`` later: in the midst of whatever the process does then."""

    role: Role
    index: int
    at: int
    delay_seconds: float = 0.0

    def __post_init__(self) -> None:
        _check(self, self.index, self.at)
        _check_seconds(self, self.delay_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """SIGSTOP at step ``at`` and SIGCONT ``seconds`` later."""

    role: Role
    index: int
    at: int
    seconds: float

    def __post_init__(self) -> None:
        _check(self, self.index, self.at)
        _check_seconds(self, self.seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow:
    """From step ``at`` on, up to but without ``until``, every step takes ``factor`` times as long plus ``seconds``."""

    role: Role
    index: int
    at: int
    seconds: float = 0.0
    factor: float = 1.0
    until: int | None = None

    def __post_init__(self) -> None:
        _check(self, self.index, self.at)
        _check_seconds(self, self.seconds)
        if not 1.0 <= self.factor < float("inf"):
            raise InputError(f"slow {self.role} {self.index}: expected a factor >= 1, found {self.factor}")
        if self.until is not None and self.until <= self.at:
            raise InputError(
                f"slow {self.role} {self.index}: expected to end after step {self.at}, found {self.until}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class CutLink:
    """For ``seconds`` from step ``at`` on nothing passes between this process and the other role's."""

    role: Role
    index: int
    at: int
    seconds: float

    def __post_init__(self) -> None:
        _check(self, self.index, self.at)
        _check_seconds(self, self.seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class DropLink:
    """The process's connections are reset once, at step ``at``; it may connect again at once."""

    role: Role
    index: int
    at: int

    def __post_init__(self) -> None:
        _check(self, self.index, self.at)


@dataclass(frozen=True, slots=True, kw_only=True)
class CorruptFrame:
    """One byte of the next frame that the process sends after step ``at`` is changed."""

    role: Role
    index: int
    at: int

    def __post_init__(self) -> None:
        _check(self, self.index, self.at)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFull:
    """The first checkpoint of step ``at`` or later fails with ENOSPC, whoever saves it."""

    at: int

    def __post_init__(self) -> None:
        _check(self, 0, self.at)


Fault = Kill | Stop | Slow | CutLink | DropLink | CorruptFrame | DiskFull

FAULT_TYPES: Mapping[str, type[Fault]] = MappingProxyType(
    {
        "kill": Kill, "stop": Stop, "slow": Slow, "cut": CutLink, "drop": DropLink,
        "corrupt": CorruptFrame, "fill": DiskFull,
    }
)  # fmt: skip
"""Faults by the word that names them."""

RANDOM_KINDS: tuple[Kind, ...] = ("kill", "stop", "slow", "cut", "drop", "corrupt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """Faults still to be drawn at random: how many, of which kinds and roles, from which seed."""

    count: int
    kinds: tuple[Kind, ...]
    roles: tuple[Role, ...] = ("worker", "server")
    seed: int | None = None

    def __post_init__(self) -> None:
        if type(self.count) is not int or self.count < 1:
            raise InputError(f"random faults: expected a count >= 1, found {self.count!r}")
        unknown = [kind for kind in self.kinds if kind not in RANDOM_KINDS]
        if unknown or not self.kinds:
            raise InputError(
                f"random faults: unknown kind {', '.join(unknown) or 'none'}",
                hint=f"kinds: {', '.join(RANDOM_KINDS)}",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultScript:
    """All that shall go wrong in one run.

    Args:
        faults: those that are settled; a fault's place among them is its number.
        draws: those still to be drawn, once the run's size is known; see :meth:`settle`.

    >>> bool(FaultScript())
    False
    """

    faults: tuple[Fault, ...] = ()
    draws: tuple[Draw, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.faults or self.draws)

    def settle(self, *, num_workers: int, num_servers: int, total_steps: int, seed: int = 0) -> FaultScript:
        """The same script with everything drawn, and checked against the run's size.

        Args:
            seed: for draws that name none.

        Raises:
            InputError: a fault concerns a process that the run does not have.
        """
        faults = list(self.faults)
        for draw in with_seed(self, seed).draws:
            drawn = random_faults(
                draw.seed or 0, count=draw.count, kinds=draw.kinds, roles=draw.roles,
                num_workers=num_workers, num_servers=num_servers, total_steps=total_steps,
            )  # fmt: skip
            faults += drawn.faults
        counts = {"worker": num_workers, "server": num_servers}
        for fault in faults:
            if not isinstance(fault, DiskFull) and fault.index >= counts[fault.role]:
                raise InputError(
                    f"{fault_word(fault)} {fault.role} {fault.index}: the run has "
                    f"{counts[fault.role]} {fault.role}(s)",
                    hint="they are counted from 0",
                )
        return FaultScript(faults=tuple(faults))


def random_faults(
    seed: int,
    *,
    count: int,
    kinds: tuple[Kind, ...],
    num_workers: int,
    num_servers: int,
    total_steps: int,
    roles: tuple[Role, ...] = ("worker", "server"),
) -> FaultScript:
    """``count`` faults, evenly among the kinds, the processes and the steps; equal seeds give equal scripts.

    Steps lie in the middle nine tenths of the run, so that there is a run before and after each. Kills come at
    any moment of up to 50 ms after their step.

    Args:
        total_steps: of a worker, and versions of a shard.

    Raises:
        InputError: the count is below 1, a kind unknown, or there is no process to choose from.

    >>> random_faults(7, count=1, kinds=("drop",), num_workers=2, num_servers=0, total_steps=100).faults
    (DropLink(role='worker', index=0, at=55),)
    """
    Draw(count=count, kinds=kinds, roles=roles)
    counts: dict[Role, int] = {"worker": num_workers, "server": num_servers}
    processes = [(role, index) for role in roles for index in range(counts[role])]
    if not processes:
        raise InputError(f"random faults: the run has no {' or '.join(roles)}")
    dice = random.Random(seed)
    first, last = total_steps // 20, max(total_steps // 20, total_steps - 1 - total_steps // 20)
    faults = []
    for _ in range(count):
        kind = dice.choice(kinds)
        role, index = dice.choice(processes)
        faults.append(_draw(dice, kind, role, index, at=dice.randint(first, last)))
    return FaultScript(faults=tuple(sorted(faults, key=lambda fault: fault.at)))


def _draw(dice: random.Random, kind: Kind, role: Role, index: int, *, at: int) -> Fault:
    seconds = round(dice.uniform(0.05, 0.5), 3)
    match kind:
        case "kill":
            return Kill(role=role, index=index, at=at, delay_seconds=round(seconds / 10, 4))
        case "stop":
            return Stop(role=role, index=index, at=at, seconds=seconds)
        case "slow":
            length = dice.randint(5, 20)
            return Slow(role=role, index=index, at=at, seconds=round(seconds / 5, 4), until=at + length)
        case "cut":
            return CutLink(role=role, index=index, at=at, seconds=seconds)
        case "drop":
            return DropLink(role=role, index=index, at=at)
        case "corrupt":
            return CorruptFrame(role=role, index=index, at=at)


def fault_word(fault: Fault) -> str:
    """The word that names the fault's kind, such as ``kill``."""
    return next(word for word, kind in FAULT_TYPES.items() if kind is type(fault))


def where_text(fault: Fault) -> str:
    """What the fault hits, in words.

    >>> where_text(Kill(role="server", index=1, at=5))
    'server 1'
    """
    return "disk" if isinstance(fault, DiskFull) else f"{fault.role} {fault.index}"


def script_to_json(script: FaultScript) -> dict[str, Any]:
    """The script as JSON-ready values, each fault's kind under ``"kind"``.

    >>> script_to_json(FaultScript(faults=(DropLink(role="worker", index=0, at=3),)))
    {'faults': [{'kind': 'drop', 'role': 'worker', 'index': 0, 'at': 3}], 'draws': []}
    """
    faults = [{"kind": fault_word(fault), **value_to_json(fault)} for fault in script.faults]
    return {"faults": faults, "draws": value_to_json(script.draws)}


def script_from_json(values: Mapping[str, Any]) -> FaultScript:
    """Inverse of :func:`script_to_json`.

    Raises:
        InputError: a kind is unknown, or a value missing, of the wrong type or outside its range.
    """
    faults = []
    for number, each in enumerate(values.get("faults", ())):
        kind = FAULT_TYPES.get(str(each.get("kind")))
        if kind is None:
            raise InputError(
                f"faults[{number}]: unknown kind {each.get('kind')!r}",
                hint=f"one of {', '.join(FAULT_TYPES)}",
            )
        faults.append(value_from_json(kind, each))
    draws = tuple(_draw_from_json(each) for each in values.get("draws", ()))
    return FaultScript(faults=tuple(faults), draws=draws)


def _draw_from_json(values: Mapping[str, Any]) -> Draw:
    return value_from_json(Draw, values)


def with_seed(script: FaultScript, seed: int) -> FaultScript:
    """The same script, its draws that name no seed given this one and those after it."""
    draws = tuple(
        replace(draw, seed=seed + number) if draw.seed is None else draw
        for number, draw in enumerate(script.draws)
    )
    return replace(script, draws=draws)


def _check(fault: object, index: int, at: int) -> None:
    word = type(fault).__name__
    role = getattr(fault, "role", "worker")
    if role not in ("worker", "server"):
        raise InputError(f"{word}: expected worker or server, found {role!r}")
    for name, value in (("index", index), ("step", at)):
        if type(value) is not int or value < 0:
            raise InputError(f"{word}: expected {name} to be a whole number >= 0, found {value!r}")


def _check_seconds(fault: object, seconds: float) -> None:
    if not 0.0 <= seconds < float("inf"):
        found = ", ".join(field.name for field in fields(fault) if "seconds" in field.name)  # type: ignore[arg-type]
        raise InputError(f"{type(fault).__name__}: expected {found} >= 0, found {seconds}")
