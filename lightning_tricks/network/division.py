"""A network divided into stages for a run: what each holds, and whether a checkpoint's run had the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from lightning_tricks.core.conflicts import ConflictError
from lightning_tricks.core.groups import group_sizes, saved_group_sizes
from lightning_tricks.core.partition import disjoint
from lightning_tricks.core.select import Patterns
from lightning_tricks.lifecycle.seal import unsealed
from lightning_tricks.lifecycle.table import text_table
from lightning_tricks.network.proposal import propose_stages
from lightning_tricks.network.stage_table import STAGE_COLUMNS, stage_rows
from lightning_tricks.network.stages import check_same, split_by_stage_

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

__all__ = ["Division", "division_table"]

Stages = int | Sequence[Patterns]
"""The patterns of each stage, or how many there are, for stages by depth."""


def _divided(module: nn.Module, stages: Stages) -> tuple[list[Patterns], list[dict[str, nn.Parameter]]]:
    patterns = [*(propose_stages(module, stages) if isinstance(stages, int) else stages)]
    return patterns, disjoint(module, patterns, name="stages", part="stage")


def division_table(title: str, module: nn.Module, stages: Stages, opens: Sequence[str], factor: float) -> str:
    """Return the stages of ``module`` as a table under a ``title``.

    Args:
        title: A line.
        module: The whole network.
        stages: What each holds.
        opens: When each opens, in words.
        factor: Ratio of the rates of two successive stages.

    Raises:
        ValueError: If a pattern matches nothing, a parameter is in two stages, or there are not so many.
    """
    rows = stage_rows(module, *_divided(module, stages), opens, factor)
    return text_table(title, STAGE_COLUMNS, rows)


class Division:
    """The stages of a run.

    Attributes:
        patterns: Of each stage.
        members: The parameters of each stage, by name.
        found: What the checkpoint that the run goes on from holds of its stages, if there is one.
    """

    def __init__(self) -> None:
        """Know of no run and no checkpoint."""
        self.patterns: list[Patterns] = []
        self.members: list[dict[str, nn.Parameter]] = []
        self._factor, self._splits = 1.0, False
        self.forget()

    def forget(self) -> None:
        """Know of no checkpoint."""
        self.found: dict[str, Any] | None = None
        self._found_sizes: list[list[int]] = []

    def read(self, checkpoint: dict[str, Any], key: str) -> None:
        """Read what the technique of this ``key`` has saved, and the sizes of the parameter groups."""
        entry = unsealed(checkpoint, key)
        self.found = None if entry is None else entry["state"]
        self._found_sizes = saved_group_sizes(checkpoint)

    def take(
        self, trainer: Trainer, pl_module: LightningModule, stages: Stages, factor: float, *, split: bool
    ) -> None:
        """Divide the module of a run.

        Args:
            trainer: The Trainer of the run.
            pl_module: Its module.
            stages: What each holds.
            factor: Ratio of the rates of two successive stages.
            split: Whether parameter groups are to be split by stage.

        Raises:
            ConflictError: If there is a scheduler that would not know the rates of stages.
            ValueError: As :func:`division_table`.
        """
        self._factor, self._splits = factor, split
        self.patterns, self.members = _divided(pl_module, stages)
        if self._factor != 1 and trainer.strategy.lr_scheduler_configs:
            raise ConflictError(
                f"lr_factor must be 1 with a scheduler of {type(pl_module).__name__}.configure_optimizers, "
                f"which was built before parameter groups are split, got {self._factor!r}: "
                "set lr_factor=1, or return no scheduler"
            )

    def accept(self) -> int | None:
        """Return how many stages are open in the checkpoint, if there is one, whose stages are to be these.

        Before Lightning loads the optimizers: torch would find other groups and not say why.
        """
        if self.found is None:
            return None
        check_same(self.found, self.members, self._factor, split=self._splits)
        return int(self.found["opened"])

    def split(self, trainer: Trainer, key: str, warmup: int | str) -> None:
        """Split the parameter groups of all optimizers by stage.

        Raises:
            ValueError: If those of the checkpoint are others, written without the technique of this ``key``.
        """
        depths = {p: depth for depth, stage in enumerate(self.members) for p in stage.values()}
        for optimizer in trainer.optimizers:
            split_by_stage_(optimizer, depths, self._factor)
        sizes = group_sizes(optimizer.param_groups for optimizer in trainer.optimizers)
        if self.found is None and self._found_sizes not in ([], sizes):
            raise ValueError(
                "lr_factor must be 1, and warmup 0, to go on from a checkpoint written without "
                f"{key}, got {self._factor!r} and {warmup!r}: its optimizers "
                f"have parameter groups of {self._found_sizes} tensors, those of this run {sizes}"
            )
