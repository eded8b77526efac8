"""A table, where a logger can show one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger

__all__ = ["log_table"]


def log_table(
    trainer: Trainer, name: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, step: int
) -> None:
    """Log a table to Weights & Biases, if the run is logged there.

    Args:
        trainer: The Trainer of the run.
        name: Under which it is logged.
        columns: Their names.
        rows: An entry for each column.
        step: For which it is logged.
    """
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and trainer.is_global_zero:
            import wandb

            table: Any = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
            logger.log_metrics(cast("dict[str, float]", {name: table}), step=step)
