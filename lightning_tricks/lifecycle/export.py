"""The average of a checkpoint as a file of its own, for those who only use the model."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_tricks.core import checks
from lightning_tricks.lifecycle.checkpoints import average_of, read, without_training
from lightning_tricks.lifecycle.files import check_new, save
from lightning_tricks.lifecycle.safetensors_files import save_safetensors

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["export_average", "write_state"]


def export_average(
    checkpoint_path: str | PathLike[str],
    output: str | PathLike[str],
    *,
    label: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the averaged weights of a checkpoint into a file that holds nothing else of the run.

    It is there once all is written; an error leaves what was there as it was.

    Args:
        checkpoint_path: A file, or the folder of a distributed checkpoint, as
            :func:`~lightning_tricks.average_state` takes it.
        output: Where to. If it ends in ``.safetensors``, a file of tensors alone; if in ``.ckpt``, a
            checkpoint of one set of weights with hyperparameters and what the module itself has saved, which
            ``load_from_checkpoint`` reads without the technique.
        label: Which of several averages; ``None`` for the one that evaluations see.
        overwrite: Whether a file that is there may be replaced; never the checkpoint itself.

    Returns:
        The path of the file.

    Raises:
        FileExistsError: If ``output`` is there, and may not be replaced.
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If it is no checkpoint of Lightning, holds no such average, or one of which a file of
            tensors cannot hold an entry; if ``output`` is that checkpoint, or of another kind.
        OSError: If the file cannot be written.
    """
    path = Path(output)
    checks.one_of("the suffix of output", path.suffix, (".ckpt", ".safetensors"))
    if path.exists() and path.samefile(checkpoint_path):
        raise ValueError(f"output must not be the checkpoint that it is read from, got {output}")
    check_new(path, overwrite=overwrite)
    checkpoint = read(checkpoint_path)
    write_state(average_of(checkpoint, checkpoint_path, label), path, without_training(checkpoint))
    return path


def write_state(state: dict[str, Tensor], path: Path, beside: Mapping[str, Any]) -> None:
    """Write weights as :func:`export_average` does.

    Args:
        state: A state dict.
        path: Where to.
        beside: What else a checkpoint of them holds, plain values; a file of tensors alone leaves it out.

    Raises:
        OSError: If the file cannot be written.
        ValueError: If a file of tensors cannot hold an entry.
    """
    if path.suffix == ".safetensors":
        save_safetensors(state, path)
    else:
        save({**beside, "state_dict": state}, path)
