"""A progress bar over the trials of a study."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["trials_bar"]


@contextmanager
def trials_bar(wanted: int, *, hidden: bool) -> Iterator[Callable[[int, str], None]]:
    """Show how many trials have ended, how long the rest will take, and a text; in a terminal alone.

    A study that goes on says so without one, too.

    Args:
        wanted: How many there are to be.
        hidden: Whether not to show it there either.
    """
    console, begun = Console(stderr=True, highlight=False), False
    columns = (TextColumn("trials"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    now = TextColumn("{task.fields[now]}", markup=False)
    with Progress(*columns, now, console=console, disable=hidden or not console.is_terminal) as bar:
        task = bar.add_task("", total=wanted, now="")

        def show(ended: int, text: str) -> None:
            nonlocal begun
            if ended and not begun:
                console.print(f"{ended} of {wanted} trials had ended before", soft_wrap=True)
            begun = True
            bar.update(task, completed=ended, now=text)

        yield show
