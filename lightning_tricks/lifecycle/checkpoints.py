"""Two sets of weights in one checkpoint: the live ones, which are trained, and their average.

    save="average"   "state_dict" holds the average, "current_model_state" the live weights
    save="live"      "state_dict" holds the live weights, "average_model_state" the average

The first is the layout of Lightning's own weight averaging, so that either reads the other's weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from lightning_tricks.core.select import clean_name

__all__ = [
    "AVERAGE",
    "LIVE",
    "average_of",
    "average_state",
    "averaged_steps",
    "holds_average",
    "holds_beside",
    "live_state",
    "read",
    "read_sets",
    "without_training",
    "write_sets",
]

LIVE, AVERAGE = "current_model_state", "average_model_state"
_TRAINING = (
    *("callbacks", "loops", "lr_schedulers", "optimizer_states", "MixedPrecision"),
    *(LIVE, AVERAGE, "averaging_state"),
)


def live_state(path: str | PathLike[str]) -> dict[str, Tensor]:
    """Return the weights that training went on from, as a module's ``load_state_dict`` takes them.

    Args:
        path: A checkpoint, with averaged weights or without; loaded onto the CPU. The folder of a
            distributed one is gathered in this process, and is trusted as torch trusts it.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If it is no checkpoint of Lightning.
    """
    return read_sets(read(path))[0]


def average_state(path: str | PathLike[str], *, label: str | None = None) -> dict[str, Tensor]:
    """Return the averaged weights, as a module's ``load_state_dict`` takes them.

    In a file that was written after weights were fused, these are the fused ones.

    Args:
        path: A checkpoint, as in :func:`live_state`.
        label: That of the technique whose average is meant, one of several; ``None`` for the one that
            evaluations see. What it has not averaged are the live weights.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If it is no checkpoint of Lightning, or holds no such average.
    """
    return average_of(read(path), path, label)


def average_of(
    checkpoint: Mapping[str, Any], path: str | PathLike[str], label: str | None
) -> dict[str, Tensor]:
    """Return what :func:`average_state` does, of a checkpoint that has been read from ``path``."""
    entry = None if label is None else _labelled(checkpoint, label)
    if entry is None or not entry["aside"]:
        if not holds_average(checkpoint):
            raise ValueError(f"path must be a checkpoint with averaged weights, got {str(path)!r}")
        return read_sets(checkpoint)[1]
    if not entry["wide"]:
        raise ValueError(f"path must be a checkpoint after the average of {label!r} began, got {str(path)!r}")
    average, live = entry["wide"], read_sets(checkpoint)[0]
    return {
        key: average[clean_name(key)].to(value) if clean_name(key) in average else value
        for key, value in live.items()
    }


def _labelled(checkpoint: Mapping[str, Any], label: str) -> Mapping[str, Any]:
    """Return what the technique with this label, which averages, has saved."""
    states = {key: entry.get("state", {}) for key, entry in checkpoint.get("callbacks", {}).items()}
    labels = {
        key.partition("[")[2].removesuffix("]"): state for key, state in states.items() if "aside" in state
    }
    if label not in labels:
        known = ", ".join(repr(each) for each in labels if each) or "none"
        raise ValueError(f"label must be that of an average in the checkpoint, got {label!r}; it has {known}")
    found: Mapping[str, Any] = labels[label]
    return found


def without_training(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint without what only a training needs that goes on from it."""
    return {key: value for key, value in checkpoint.items() if key not in _TRAINING}


def read(path: str | PathLike[str]) -> dict[str, Any]:
    """Return a checkpoint on the CPU, from a file or from the folder of a distributed one.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If it is no checkpoint of Lightning.
    """
    rule = f"path must be a checkpoint of Lightning, got {str(path)!r}"
    if Path(path).is_dir():
        if not (Path(path) / "meta.pt").exists():
            raise ValueError(f"{rule}, a folder without meta.pt")
        return _load_folder(path)
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (EOFError, KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"{rule}: {error}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{rule}, which holds no state_dict")
    return checkpoint


def _load_folder(path: str | PathLike[str]) -> dict[str, Any]:
    # Imported here, because it takes as long as fusing, which reads such folders in another way.
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    with TemporaryDirectory() as scratch:
        file = Path(scratch) / "weights.pt"
        dcp_to_torch_save(path, file)
        parts = torch.load(file, map_location="cpu", weights_only=True)
    rest = torch.load(Path(path) / "meta.pt", map_location="cpu", weights_only=True)
    return {**rest, "state_dict": parts.get("state_dict", parts.get("model"))}  # FSDP2 and FSDP1


def averaged_steps(checkpoint: Mapping[str, Any]) -> int:
    """Return how often Lightning's own averaging had moved its average; 0 if there was none."""
    return int(checkpoint.get("averaging_state", {}).get("n_averaged", 0))


def holds_beside(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether the average stands beside the ``state_dict``."""
    return AVERAGE in checkpoint


def holds_average(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether there is an average that has been moved."""
    # Lightning's own averaging writes the initial weights as the average until it has moved it.
    moved = "averaging_state" not in checkpoint or averaged_steps(checkpoint) > 0
    return AVERAGE in checkpoint or (LIVE in checkpoint and moved)


def read_sets(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the live weights and the average; without an average, the live weights twice."""
    first = checkpoint["state_dict"]
    return checkpoint.get(LIVE, first), checkpoint.get(AVERAGE, first)


def write_sets(
    checkpoint: dict[str, Any], *, live: dict[str, Tensor], average: dict[str, Tensor], save: str
) -> None:
    """Put both sets into ``checkpoint``, in the layout that ``save`` names."""
    first, key, second = (average, LIVE, live) if save == "average" else (live, AVERAGE, average)
    for other in {LIVE, AVERAGE} & checkpoint.keys():
        del checkpoint[other]
    checkpoint["state_dict"], checkpoint[key] = first, second
