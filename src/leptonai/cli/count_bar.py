"""A bar with a count, for work whose parts are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Count = Callable[[str, float, int | None], None]
"""What the work calls: what it does, parts done (a part may be done in part), all parts; None: not known yet."""
_BAR_COLUMNS = 30


@contextmanager
def count_bar(console: Console, words: str) -> Iterator[Count]:
    """A bar that goes when the work ends; nothing at all where nobody watches a terminal.

    Args:
        console: where.
        words: what is done at first.

    >>> import io
    >>> with count_bar(Console(file=io.StringIO()), "machine sets") as count:
    ...     count("machine sets", 1, 2)
    """
    words_and_bar = (TextColumn("{task.description}"), BarColumn(bar_width=_BAR_COLUMNS))
    columns = (*words_and_bar, MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(words, total=None)

        def count(words: str, done: float, total: int | None) -> None:
            bar.update(task, description=words, completed=done, total=total)

        yield count
