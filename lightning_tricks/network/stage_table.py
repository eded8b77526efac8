"""The rows of a table of stages: what each holds, when it opens, how many parameters learn from then on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from torch import nn

from lightning_tricks.core.partition import written
from lightning_tricks.core.select import Patterns, select

__all__ = ["STAGE_COLUMNS", "stage_rows"]

STAGE_COLUMNS: dict[str, Literal["left", "right"]] = {
    "stage": "left",
    "patterns": "left",
    "opens at": "left",
    "tensors": "right",
    "parameters": "right",
    "rate factor": "left",
    "trainable so far": "right",
}


def stage_rows(
    module: nn.Module,
    stages: Sequence[Patterns],
    members: Sequence[Mapping[str, nn.Parameter]],
    opens: Sequence[str],
    factor: float,
) -> Iterator[tuple[str, ...]]:
    """Yield a row of :data:`STAGE_COLUMNS` for each stage, and one for the parameters that are in none.

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
