"""What a job allows when a worker is lost in the middle of a run."""

from __future__ import annotations

from dataclasses import dataclass

from leptonai.core.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Elastic:
    """The run goes on when a worker is lost to a signal or hangs, from the last step that was complete.

    Alters no result beyond the rounding that another number of workers brings. An exception in a worker, a
    loss that is not finite, or wrong input ends the run all the same.

    Args:
        min_workers: with fewer the run ends as a fault, >= 1.
        max_losses: losses in one run that are borne, >= 0; the next one ends it.
        replace: whether a new worker takes the place of a lost one; False: the others share its work.
        spare: workers kept ready to step in (they hold the job, its data and the model in memory), >= 0; CPU only.

    Raises:
        InputError: a value lies outside its range.

    >>> Elastic(replace=False).min_workers
    1
    """

    min_workers: int = 1
    max_losses: int = 8
    replace: bool = True
    spare: int = 1

    def __post_init__(self) -> None:
        for name, smallest in (("min_workers", 1), ("max_losses", 0), ("spare", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < smallest:
                raise InputError(
                    f"Elastic: expected {name} to be a whole number >= {smallest}, found {value!r}"
                )
        if type(self.replace) is not bool:
            raise InputError(f"Elastic: expected replace to be true or false, found {self.replace!r}")
