"""The error tree, cut by who must act."""

from __future__ import annotations

from typing import ClassVar


class LeptonError(Exception):
    """Base of every error this project raises on purpose.

    Args:
        message: one sentence that names the place and what was found.
        hint: what to do about it; shown on a line of its own.
    """

    exit_code: ClassVar[int] = 70

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.hint))


class InputError(LeptonError):
    """The caller must fix a file or a call. Exit code 2."""

    exit_code = 2


class Refused(LeptonError):
    """A policy, key or budget said no. Exit code 3."""

    exit_code = 3


class Fault(LeptonError):
    """The world broke (a process, disk or network); it may be retried. Exit code 4.

    Args:
        detail: longer text such as a worker's traceback, shown before the message.
    """

    exit_code = 4

    def __init__(self, message: str, *, hint: str | None = None, detail: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.detail = detail
        if detail:
            self.add_note(detail)  # so that an uncaught Fault in a notebook shows it too


def _rebuild(kind: type[LeptonError], message: str, hint: str | None) -> LeptonError:
    return kind(message, hint=hint)
