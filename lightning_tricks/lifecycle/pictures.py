"""Pictures, handed to the loggers that take some and written where none does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

__all__ = ["log_picture"]


def log_picture(
    trainer: Trainer,
    name: str,
    picture: Tensor,
    *,
    encode: Callable[[Tensor], bytes],
    folder: str | None,
    file: str,
) -> None:
    """Hand a picture to the loggers of ``trainer`` that take pictures, those of W&B and TensorBoard.

    It is written to a file, too, if there is a ``folder`` for it, or if there are loggers and none takes it.

    Args:
        trainer: The Trainer of the run; only its first process does anything.
        name: Under which it is logged; the file's folder has its last part for a name, if ``folder`` is
            ``None``.
        picture: Of type uint8, shape (channels, height, width), on the CPU.
        encode: Makes a file of it.
        folder: Where to write it in any case.
        file: The file's name.
    """
    if not trainer.is_global_zero:
        return
    taken = [_take(logger, name, picture, trainer.global_step) for logger in trainer.loggers]
    if folder is None and taken and not any(taken):
        folder = str(Path(trainer.log_dir or trainer.default_root_dir) / name.rpartition("/")[2])
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / file).write_bytes(encode(picture))


def _take(logger: Any, name: str, picture: Tensor, step: int) -> bool:
    """Return whether ``logger`` took the picture."""
    if hasattr(logger, "log_image"):  # W&B's
        logger.log_image(name, [picture.permute(1, 2, 0).numpy()], step=step)
        return True
    add_image = getattr(logger.experiment, "add_image", None)  # TensorBoard's
    if add_image is not None:
        add_image(name, picture, step)
    return add_image is not None
