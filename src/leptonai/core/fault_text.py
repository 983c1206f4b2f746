"""Fault scripts as people write them: one sentence a fault, parted by semicolons or line ends.

::

    kill worker 1 at 30                     kill server 0 at 50 after 20ms
    stop worker 0 at 10 for 2s              slow worker 0 from 0 by 100ms
    slow worker 0 from 10 to 90 by 4x       cut server 1 at 20 for 500ms
    drop worker 1 at 30                     corrupt worker 1 at 30
    fill disk at 100                        random 20 kills of servers seed 7
"""

from __future__ import annotations

import re
from typing import cast

from leptonai.core.errors import InputError
from leptonai.core.faults import (
    FAULT_TYPES,
    RANDOM_KINDS,
    CorruptFrame,
    CutLink,
    DiskFull,
    Draw,
    DropLink,
    Fault,
    FaultScript,
    Kill,
    Kind,
    Role,
    Slow,
    Stop,
    fault_word,
)
from leptonai.core.units import parse_seconds

EXAMPLE = (
    "kill worker 1 at 30; stop worker 0 at 10 for 2s; slow worker 0 from 0 by 100ms; random 20 kills seed 7"
)


def parse_faults(text: str) -> FaultScript:
    """The script that ``text`` describes; text after ``#`` up to the end of its line is a comment.

    Raises:
        InputError: names the word that was not understood and what was expected there.

    >>> parse_faults("kill worker 1 at 30").faults
    (Kill(role='worker', index=1, at=30, delay_seconds=0.0),)
    >>> parse_faults("random 20 kills seed 7").draws[0].count
    20
    """
    faults: list[Fault] = []
    draws: list[Draw] = []
    for sentence in re.split(r"[;\n]", re.sub(r"#[^\n]*", "", text)):
        if not sentence.strip():
            continue
        words = _Words(sentence)
        found = _sentence(words)
        words.end()
        if isinstance(found, Draw):
            draws.append(found)
        else:
            faults.append(found)
    return FaultScript(faults=tuple(faults), draws=tuple(draws))


def faults_text(script: FaultScript) -> str:
    """Inverse of :func:`parse_faults`.

    >>> faults_text(parse_faults("slow   worker 0 from 0 by 4x"))
    'slow worker 0 from 0 by 4.0x'
    """
    return "; ".join([*(fault_text(fault) for fault in script.faults), *map(_draw_text, script.draws)])


def fault_text(fault: Fault) -> str:
    """One fault as its sentence."""
    if isinstance(fault, DiskFull):
        return f"fill disk at {fault.at}"
    start = f"{fault_word(fault)} {fault.role} {fault.index}"
    match fault:
        case Kill():
            after = f" after {fault.delay_seconds!r}s" if fault.delay_seconds else ""
            return f"{start} at {fault.at}{after}"
        case Stop() | CutLink():
            return f"{start} at {fault.at} for {fault.seconds!r}s"
        case Slow():
            until = "" if fault.until is None else f" to {fault.until}"
            much = [f"{fault.factor!r}x"] if fault.factor != 1.0 else []
            much += [f"{fault.seconds!r}s"] if fault.seconds or not much else []
            return f"{start} from {fault.at}{until} by {' and '.join(much)}"
        case DropLink() | CorruptFrame():
            return f"{start} at {fault.at}"


def _draw_text(draw: Draw) -> str:
    kinds = "faults" if draw.kinds == RANDOM_KINDS else " and ".join(f"{kind}s" for kind in draw.kinds)
    roles = f" of {draw.roles[0]}s" if len(draw.roles) == 1 else ""
    seed = "" if draw.seed is None else f" seed {draw.seed}"
    return f"random {draw.count} {kinds}{roles}{seed}"


def _sentence(words: _Words) -> Fault | Draw:
    verb = words.one_of(*FAULT_TYPES, "random")
    if verb == "random":
        return _random(words)
    if verb == "fill":
        words.one_of("disk")
        return DiskFull(at=words.after("at"))
    role = cast(Role, words.one_of("worker", "server"))
    index = words.number()
    if verb == "slow":
        return _slow(words, role, index)
    at = words.after("at")
    match verb:
        case "kill":
            late = words.seconds() if words.optional("after") else 0.0
            return Kill(role=role, index=index, at=at, delay_seconds=late)
        case "stop":
            words.one_of("for")
            return Stop(role=role, index=index, at=at, seconds=words.seconds())
        case "cut":
            words.one_of("for")
            return CutLink(role=role, index=index, at=at, seconds=words.seconds())
        case "drop":
            return DropLink(role=role, index=index, at=at)
        case _:
            return CorruptFrame(role=role, index=index, at=at)


def _slow(words: _Words, role: Role, index: int) -> Slow:
    at = words.after("from")
    until = words.number() if words.optional("to") else None
    words.one_of("by")
    seconds, factor = words.slowness()
    if words.optional("and"):
        more, times = words.slowness()
        seconds, factor = seconds + more, factor * times
    return Slow(role=role, index=index, at=at, until=until, seconds=seconds, factor=factor)


def _random(words: _Words) -> Draw:
    count = words.number()
    names = {name: kind for kind in RANDOM_KINDS for name in (kind, f"{kind}s")}
    kinds: list[Kind] = []
    while not kinds or words.optional("and"):
        word = words.one_of(
            *names, "fault", "faults", shown=(*(f"{kind}s" for kind in RANDOM_KINDS), "faults")
        )
        kinds += RANDOM_KINDS if word.startswith("fault") else (names[word],)
    roles: tuple[Role, ...] = ("worker", "server")
    if words.optional("of"):
        roles = (cast(Role, words.one_of("workers", "servers").removesuffix("s")),)
    seed = words.number() if words.optional("seed") else None
    return Draw(count=count, kinds=tuple(dict.fromkeys(kinds)), roles=roles, seed=seed)


class _Words:
    """The words of one sentence, read from left to right."""

    def __init__(self, sentence: str) -> None:
        self._sentence = " ".join(sentence.split())
        self._words = sentence.split()
        self._at = 0

    def one_of(self, *expected: str, shown: tuple[str, ...] = ()) -> str:
        found = self._peek()
        if found not in expected:
            raise self._wrong(" or ".join(shown or expected))
        self._at += 1
        return found

    def optional(self, word: str) -> bool:
        if self._peek() != word:
            return False
        self._at += 1
        return True

    def after(self, word: str) -> int:
        self.one_of(word)
        return self.number()

    def number(self) -> int:
        found = self._peek()
        if not re.fullmatch(r"[0-9]{1,18}", found, re.ASCII):
            raise self._wrong("a whole number")
        self._at += 1
        return int(found)

    def seconds(self) -> float:
        try:
            value = parse_seconds(self._peek())
        except InputError:
            raise self._wrong("a time such as 100ms or 2s") from None
        self._at += 1
        return value

    def slowness(self) -> tuple[float, float]:
        """Seconds and factor."""
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?(?:e\+?[0-9]{1,2})?)x", self._peek(), re.ASCII)
        if found:
            self._at += 1
            return 0.0, float(found[1])
        try:
            return self.seconds(), 1.0
        except InputError:
            raise self._wrong("a time such as 100ms or a factor such as 4x") from None

    def end(self) -> None:
        if self._at < len(self._words):
            raise self._wrong("the end")

    def _peek(self) -> str:
        return self._words[self._at] if self._at < len(self._words) else ""

    def _wrong(self, expected: str) -> InputError:
        found = repr(self._peek()[:40]) if self._peek() else "the end"
        return InputError(
            f"faults: {self._sentence[:80]!r}: expected {expected}, found {found}",
            hint=f"write sentences such as: {EXAMPLE}",
        )
