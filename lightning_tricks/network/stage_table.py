"""A table of stages: what each holds, when it opens, how many parameters learn from then on."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import nn

from lightning_tricks.core.select import Patterns, select
from lightning_tricks.network.stages import written

__all__ = ["stage_rows", "stage_table"]

_COLUMNS = ("stage", "patterns", "opens at", "tensors", "parameters", "rate factor", "trainable so far")


def stage_rows(
    module: nn.Module,
    stages: Sequence[Patterns],
    members: Sequence[Mapping[str, nn.Parameter]],
    opens: Sequence[str],
    factor: float,
) -> Iterator[tuple[str, ...]]:
    """Yield a row for each stage, and one for the parameters that are in none.

    Args:
        module: The whole network.
        stages: The patterns of each stage.
        members: Its parameters.
        opens: When it opens, in words.
        factor: Ratio of the rates of two successive stages.
    """
    so_far = 0
    for depth, (patterns, held, moment) in enumerate(zip(stages, members, opens, strict=True)):
        size = sum(parameter.numel() for parameter in held.values())
        so_far += size
        counts = (str(len(held)), f"{size:,}", f"{factor**depth:.4g}", f"{so_far:,}")
        yield (str(depth + 1), written(patterns), moment, *counts)
    inside = {parameter for held in members for parameter in held.values()}
    frozen = [p for p in select(module, "*", name="the module").values() if p not in inside]
    if frozen:
        size = sum(parameter.numel() for parameter in frozen)
        yield ("-", "frozen, in no stage", "never", str(len(frozen)), f"{size:,}", "-", f"{so_far:,}")


def stage_table(title: str, rows: Iterable[Sequence[str]]) -> str:
    """Return a table of :func:`stage_rows` as plain text.

    Example:
        >>> print(stage_table("Two", [("1", "head", "start", "2", "99", "1", "99")]).splitlines()[1])
        | stage | patterns | opens at | tensors | parameters | rate factor | trainable so far |
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    # Letters that every terminal and every file encoding has.
    table = Table(box=box.MARKDOWN)
    for column in _COLUMNS:
        right = column in {"tensors", "parameters", "trainable so far"}
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    with io.StringIO() as text:
        Console(file=text, width=110, color_system=None, markup=False).print(table)
        lines = [line.rstrip() for line in text.getvalue().splitlines() if line.strip()]
    return "\n".join([title, *lines])
