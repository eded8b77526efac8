"""The two sets of weights of a checkpoint, and the parts of them that the processes of a run hold."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from copy import copy
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensor

from lightning_tricks.core.select import clean_name
from lightning_tricks.lifecycle.checkpoints import AVERAGE, LIVE, holds_average, write_sets
from lightning_tricks.lifecycle.layouts import Layouts, module_parts, parts_of, wholes_of

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

__all__ = ["load_average", "take_sets", "write_parts"]


def write_parts(
    trainer: Trainer,
    checkpoint: dict[str, Any],
    beside: dict[str, Tensor],
    layouts: Layouts,
    *,
    exchanged: AbstractContextManager[None] | None,
    save: str,
) -> None:
    """Write one set as the strategy does, and the other whole, by the first process; called by all.

    Args:
        trainer: The Trainer of the run.
        checkpoint: As the strategy has filled it.
        beside: This process's parts of the set that goes beside.
        layouts: Of the weights that are not whole in each process.
        exchanged: A context within which the module holds what goes under ``state_dict``; ``None`` if it
            does already, and ``checkpoint`` with it.
        save: As :func:`write_sets` takes it.
    """
    keys = {clean_name(key): key for key in checkpoint["state_dict"]}
    wholes = wholes_of(beside, layouts, keep=trainer.is_global_zero)
    whole = {keys.get(name, name): value for name, value in wholes.items()}
    first = checkpoint["state_dict"]
    if exchanged is not None:
        with exchanged:
            first = {
                key: value if isinstance(value, ShardedTensor) else value.clone()
                for key, value in trainer.strategy.lightning_module_state_dict().items()
            }
    live, average = (whole, first) if save == "average" else (first, whole)
    write_sets(checkpoint, live=live, average=average, save=save)


def take_sets(
    pl_module: LightningModule, checkpoint: Mapping[str, Any], layouts: Layouts
) -> dict[str, Tensor] | None:
    """Put the live weights of a loaded checkpoint into ``pl_module`` and return the average.

    Args:
        pl_module: Holds what the checkpoint has under ``state_dict``.
        checkpoint: As it was loaded; a strategy that loads parts takes ``state_dict`` out.
        layouts: Of the weights that are not whole in each process.

    Returns:
        This process's parts of the average by clean names; ``None`` if the checkpoint holds none.
    """
    average: Mapping[str, Tensor] = checkpoint.get("state_dict") or module_parts(pl_module)
    if LIVE in checkpoint:
        average = {name: value.clone() for name, value in average.items() if isinstance(value, Tensor)}
        _put(pl_module, checkpoint, LIVE, layouts)
    elif AVERAGE in checkpoint:
        average = parts_of(_beside(pl_module, checkpoint, AVERAGE), layouts)
    if not holds_average(checkpoint):
        return None
    return {clean_name(key): value for key, value in average.items()}


def load_average(pl_module: LightningModule, checkpoint: Mapping[str, Any], layouts: Layouts) -> None:
    """Put the average into ``pl_module`` if ``checkpoint`` holds it beside its ``state_dict``."""
    if AVERAGE in checkpoint:
        _put(pl_module, checkpoint, AVERAGE, layouts)


def _put(pl_module: LightningModule, checkpoint: Mapping[str, Any], key: str, layouts: Layouts) -> None:
    rule = f"{key} of the checkpoint must hold the weights of the module, but"
    state = _beside(pl_module, checkpoint, key)
    if not layouts:
        try:
            pl_module.load_state_dict(state, strict=pl_module.strict_loading)
        except RuntimeError as error:
            raise ValueError(f"{rule} {error}") from error
        return
    parts = parts_of(state, layouts)
    held = module_parts(pl_module)
    if pl_module.strict_loading and parts.keys() != held.keys():
        first = min(parts.keys() ^ held.keys())
        raise ValueError(f"{rule} {first!r} differs")
    for name in parts.keys() & held.keys():
        held[name].copy_(parts[name])


def _beside(pl_module: LightningModule, checkpoint: Mapping[str, Any], key: str) -> dict[str, Any]:
    state: dict[str, Any] = checkpoint[key]
    if not isinstance(state, dict):
        raise ValueError(f"{key} of the checkpoint must hold the weights of the module, got {state!r:.80}")
    if "state_dict" not in checkpoint:
        return state
    if state.keys() <= pl_module.state_dict().keys():
        return state
    # Weights of an older version of the module, which its own hook has renamed under ``state_dict`` alone.
    older = {**checkpoint, "state_dict": copy(state)}
    pl_module.on_load_checkpoint(older)
    renamed: dict[str, Any] = older["state_dict"]
    return renamed
