"""Lines, tables, pictures and histograms, where a logger can show them: in Weights & Biases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from lightning_tricks.lifecycle.notice import warn

__all__ = ["log_histograms", "log_image", "log_line", "log_table", "wandb_loggers"]


def wandb_loggers(trainer: Trainer) -> list[WandbLogger]:
    """Return the loggers of this process that log to Weights & Biases."""
    found = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    return found if trainer.is_global_zero else []


def log_line(
    trainer: Trainer, name: str, x: Sequence[float], y: Sequence[float], *, axes: tuple[str, str], step: int
) -> None:
    """Log a line as a plot over its table.

    Args:
        trainer: The Trainer of the run.
        name: Under which it is logged.
        x: Where its points are.
        y: The values there.
        axes: What both are.
        step: For which it is logged.
    """
    for logger in wandb_loggers(trainer):
        import wandb

        rows = [list(row) for row in zip(x, y, strict=True)]
        table = wandb.Table(columns=list(axes), data=rows)
        line = wandb.plot.line(table, *axes, title=f"{axes[1]} over {axes[0]}")
        _log(trainer, logger, {name: line}, step)


def log_table(
    trainer: Trainer, name: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, step: int
) -> None:
    """Log a table.

    Args:
        trainer: The Trainer of the run.
        name: Under which it is logged.
        columns: Their names.
        rows: An entry for each column.
        step: For which it is logged.
    """
    for logger in wandb_loggers(trainer):
        import wandb

        table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
        _log(trainer, logger, {name: table}, step)


def log_image(trainer: Trainer, name: str, path: Path, *, step: int) -> None:
    """Log a picture.

    Args:
        trainer: The Trainer of the run.
        name: Under which it is logged.
        path: Where it lies.
        step: For which it is logged.
    """
    for logger in wandb_loggers(trainer):
        import wandb

        _log(trainer, logger, {name: wandb.Image(str(path))}, step)


def log_histograms(trainer: Trainer, samples: Mapping[str, Tensor], *, step: int) -> None:
    """Log how values are distributed, in 64 bins; what is not finite is left out.

    Args:
        trainer: The Trainer of the run.
        samples: Values of any number, by the name under which they are logged.
        step: For which they are logged.
    """
    for logger in wandb_loggers(trainer):
        import numpy
        import wandb

        finite = {name: values[values.isfinite()].float().cpu().numpy() for name, values in samples.items()}
        bins = {name: numpy.histogram(values, bins=64) for name, values in finite.items()}
        histograms = {name: wandb.Histogram(np_histogram=each) for name, each in bins.items()}
        _log(trainer, logger, histograms, step)


def _log(trainer: Trainer, logger: WandbLogger, media: Mapping[str, Any], step: int) -> None:
    import wandb

    try:
        logger.log_metrics(cast("dict[str, float]", dict(media)), step=step)
    except wandb.Error as error:  # a table is announced to the server, which may be gone; training is not
        warn(trainer, f"Weights & Biases did not take {', '.join(media)}: {error}")
