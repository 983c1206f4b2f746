"""A bar for a search that takes a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def search_progress(console: Console) -> Iterator[Callable[[int, int], None]]:
    """What a search calls with (layouts seen, all there are); the bar goes when it ends.

    >>> import io
    >>> with search_progress(Console(file=io.StringIO())) as seen:
    ...     seen(1, 2)
    """
    columns = (
        TextColumn("searching layouts"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("search", total=None)

        def seen(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield seen
