"""A line, plotted where a logger can show one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger

__all__ = ["log_line"]


def log_line(
    trainer: Trainer, name: str, x: Sequence[float], y: Sequence[float], *, axes: tuple[str, str], step: int
) -> None:
    """Log a line to Weights & Biases, as a plot over its table, if the run is logged there.

    Args:
        trainer: The Trainer of the run.
        name: Under which it is logged.
        x: Where its points are.
        y: The values there.
        axes: What both are.
        step: For which it is logged.
    """
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and trainer.is_global_zero:
            import wandb

            rows = [list(row) for row in zip(x, y, strict=True)]
            table = wandb.Table(columns=list(axes), data=rows)
            plot: Any = wandb.plot.line(table, *axes, title=f"{axes[1]} over {axes[0]}")
            logger.log_metrics(cast("dict[str, float]", {name: plot}), step=step)
