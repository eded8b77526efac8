"""The average of a checkpoint as a file of its own, for those who only use the model."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_tricks.core.extras import extra
from lightning_tricks.lifecycle.checkpoints import average_of, read, without_training
from lightning_tricks.lifecycle.files import save, written_whole

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["check_format", "export_average", "write_state"]


def export_average(
    checkpoint_path: str | PathLike[str], output: str | PathLike[str], *, label: str | None = None
) -> Path:
    """Write the averaged weights of a checkpoint into a file that holds nothing else of the run.

    What stands at ``output`` is replaced once all is written; an error leaves it as it was.

    Args:
        checkpoint_path: A file, or the folder of a distributed checkpoint, as
            :func:`~lightning_tricks.average_state` takes it.
        output: Where to. If it ends in ``.safetensors``, a file of tensors alone, for which the extra
            ``safetensors`` must be installed; else a checkpoint of one set of weights with hyperparameters
            and what the module itself has saved, which ``load_from_checkpoint`` reads without the technique.
        label: Which of several averages; ``None`` for the one that evaluations see.

    Returns:
        The path of the file.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ModuleNotFoundError: If safetensors is asked for, but not installed.
        ValueError: If it is no checkpoint of Lightning, or holds no such average.
        OSError: If the file cannot be written.
    """
    path = Path(output)
    check_format(path)
    checkpoint = read(checkpoint_path)
    write_state(average_of(checkpoint, checkpoint_path, label), path, without_training(checkpoint))
    return path


def check_format(path: Path) -> None:
    """Check that :func:`write_state` can write what the suffix of ``path`` stands for.

    Raises:
        ModuleNotFoundError: If it cannot; names the extra to install.
    """
    if path.suffix == ".safetensors":
        with extra("safetensors"):
            import safetensors.torch  # noqa: F401  # found missing before anything is read


def write_state(state: dict[str, Tensor], path: Path, beside: Mapping[str, Any]) -> None:
    """Write weights as :func:`export_average` does.

    Args:
        state: A state dict.
        path: Where to.
        beside: What else a checkpoint of them holds, plain values; a file of tensors alone leaves it out.

    Raises:
        OSError: If the file cannot be written.
    """
    if path.suffix != ".safetensors":
        save({**beside, "state_dict": state}, path)
        return
    from safetensors.torch import save_file

    with written_whole(path) as part:
        save_file(_apart(state), part, metadata={"format": "pt"})


def _apart(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ``state`` with memory of its own for each tensor, as the format wants it."""
    seen: set[int] = set()
    own: dict[str, Tensor] = {}
    for name, value in state.items():
        storage = value.untyped_storage().data_ptr()
        own[name] = value.clone().contiguous() if storage in seen else value.contiguous()
        seen.add(storage)
    return own
