"""Tables as plain text, for what a run says of itself."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

__all__ = ["text_table"]


def text_table(
    title: str, columns: Mapping[str, Literal["left", "right"]], rows: Iterable[Sequence[str]]
) -> str:
    """Return a table under a line that says what it is of.

    Args:
        title: The line.
        columns: The name of each column, and to which side it is set.
        rows: An entry for each column; long ones are folded.

    Example:
        >>> print(text_table("Two", {"name": "left", "size": "right"}, [("a", "1"), ("b", "20")]))
        Two
        | name | size |
        |------|------|
        | a    |    1 |
        | b    |   20 |
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    # Letters that every terminal and every file encoding has.
    table = Table(box=box.MARKDOWN)
    for column, side in columns.items():
        table.add_column(column, justify=side, overflow="fold")
    for row in rows:
        table.add_row(*row)
    with io.StringIO() as text:
        # In a notebook rich would display the table, and leave the file empty.
        Console(file=text, width=110, color_system=None, markup=False, force_jupyter=False).print(table)
        lines = [line.rstrip() for line in text.getvalue().splitlines() if line.strip()]
    return "\n".join([title, *lines])
