"""Files of tensors that are whole or not there, and the folder of a run's checkpoints.

A file is written beside its place and then renamed into it.
"""

from __future__ import annotations

import glob
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_tricks.core.select import clean_name
from lightning_tricks.lifecycle.processes import in_first

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

__all__ = [
    "check_new",
    "checkpoint_folder",
    "free_path",
    "is_tuners",
    "keeps_several",
    "load",
    "save",
    "save_weights",
    "saving",
    "written_whole",
]


def check_new(path: Path, *, overwrite: bool) -> None:
    """Accept only a path of a file whose writing destroys nothing, unless that is asked for.

    Raises:
        FileExistsError: If it is there, and may not be replaced.
        IsADirectoryError: If it is a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(f"output must be a file, got {path}, a folder")
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"output must be a new file, got {path}, which is there: overwrite=True (--force) replaces it"
        )


def save(content: Any, path: Path) -> int:
    """Write ``content`` to ``path`` so that another process sees all of it or what was there before.

    Args:
        content: Tensors and plain values, nested in dicts and lists.
        path: Its folder is made if need be.

    Returns:
        The size of the file, in bytes.

    Raises:
        OSError: If it cannot be written, on a full disk for example; then ``path`` is as it was, and
            nothing is left beside it.
    """
    with saving(path), written_whole(path) as part, part.open("wb") as stream:
        torch.save(content, stream)
        return stream.tell()


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Surround ``torch.save`` to ``path``; what the disk says is raised as an OSError."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(cause := error.__context__, OSError):
            # torch closes its archive all the same, fails at that, and hides what the disk said.
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        raise


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give the path of a file to write, which takes the place of ``path`` at the end.

    After an error ``path`` is as it was, and nothing is left beside it. What a process leaves that is killed
    goes away as the next on its machine writes ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename is atomic within one file system only.
    beginning = f".{path.name}.{platform.node()}."
    part = path.with_name(f"{beginning}{os.getpid()}.part")
    for left in path.parent.glob(f"{glob.escape(beginning)}*.part"):
        writer = left.name.removeprefix(beginning).removesuffix(".part")
        if writer.isdecimal() and not _is_running(int(writer)):
            left.unlink(missing_ok=True)
    try:
        yield part
        with part.open("rb") as stream:
            # Else a power cut after the rename could leave the new name with old or no content.
            os.fsync(stream.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _is_running(process: int) -> bool:
    """Return whether there is such a process on this machine; where one cannot ask, there is."""
    if os.name != "posix":  # elsewhere signal 0 is one like any other
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's, or no number of a process
        return True
    return True


def is_tuners(path: str | os.PathLike[str] | None) -> bool:
    """Return whether ``path`` is a file from which a tuner puts the run back after its search."""
    return path is not None and Path(path).name.startswith((".lr_find_", ".scale_batch_size_"))


def load(path: Path) -> Any:
    """Return what :func:`save` wrote to ``path``, on the CPU.

    Only tensors and plain values are accepted, so a file from elsewhere cannot run code. Tensors are mapped
    from the file and read where they are used; the file may be deleted or replaced meanwhile, not changed
    in place.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a whole file of tensors and plain values.
    """
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} must be there, but it is not") from None
    except Exception as error:  # torch raises errors of a dozen kinds for a broken file
        raise ValueError(f"{path} must be a whole file of tensors and plain values; {error}") from error


def free_path(path: Path) -> Path:
    """Return ``path`` or, if that is taken, the first free one of it with ``-v1``, ``-v2`` and so on.

    Example:
        >>> free_path(Path("/no/such/folder/fused.ckpt")).name
        'fused.ckpt'
    """
    free, version = path, 0
    while free.exists():
        version += 1
        free = path.with_name(f"{path.stem}-v{version}{path.suffix}")
    return free


def checkpoint_folder(trainer: Trainer) -> Path:
    """Return the folder of ModelCheckpoint, from ``on_fit_start`` on; without one, Lightning's default.

    Raises:
        ValueError: If it is not a local folder.
    """
    folders = [getattr(saver, "dirpath", None) for saver in trainer.checkpoint_callbacks]
    folder = str(next(filter(None, folders), os.path.join(trainer.default_root_dir, "checkpoints")))
    if "://" in folder:
        raise ValueError(f"the folder of checkpoints must be a local one to write beside them, got {folder}")
    return Path(folder)


def keeps_several(trainer: Trainer) -> bool:
    """Return whether callbacks that save checkpoints leave more than the latest of them."""
    kept = [getattr(saver, "save_top_k", 1) for saver in trainer.checkpoint_callbacks]
    last = [bool(getattr(saver, "save_last", False)) for saver in trainer.checkpoint_callbacks]
    return -1 in kept or sum(kept) + sum(last) > 1


def save_weights(
    trainer: Trainer, path: Path, weights: Callable[[], Mapping[str, Tensor]], about: dict[str, Any]
) -> Path:
    """Write weights that the module holds as a Lightning checkpoint of weights, whole and in one file.

    To be called by all processes together.

    Args:
        trainer: The Trainer of the run.
        path: Where to; if that is taken, the first free one (:func:`free_path`).
        weights: Gives the whole tensors by name in the first process, which writes.
        about: What is added to the checkpoint; plain values.

    Returns:
        The path of the file.

    Raises:
        OSError: If it cannot be written; see :func:`save`.
    """
    checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=True)
    # A strategy may give parts here, and the module's hook may have put other weights in their place; what
    # it left out stays out.
    entries = checkpoint.pop("state_dict")
    held = {clean_name(name): value for name, value in weights().items()}
    checkpoint["state_dict"] = {name: held.get(clean_name(name), entries[name]) for name in entries}

    def write() -> Path:
        free = free_path(path)
        save({**checkpoint, **about}, free)
        return free

    return in_first(trainer, write)
