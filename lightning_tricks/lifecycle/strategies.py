"""How strategies lay weights out over processes: copies of all by DDP, parts by FSDP of either generation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, ShardingStrategy
from torch.nn.parallel import DistributedDataParallel

from lightning_tricks.core.gradients import Groups

__all__ = [
    "BeforeLoad",
    "any_of",
    "check_copies",
    "check_parts",
    "check_places",
    "check_whole",
    "flat_shapes",
    "flat_shards",
    "flat_units",
    "follow_trainable",
    "groups_of",
    "reshard",
    "share_buffers",
    "unsynced",
]


def follow_trainable(trainer: Trainer) -> None:
    """Let the strategy reduce the gradients of exactly the parameters that are trainable now.

    DistributedDataParallel looks once, when it wraps the module: what is opened later it never averages
    (https://github.com/Lightning-AI/pytorch-lightning/issues/20340), and what is frozen later it waits for.
    So the module is wrapped again. FSDP2 looks when it gathers weights, which it keeps after an evaluation.
    To be called by all processes, between two optimizer steps.
    """
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy) and isinstance(strategy.model, DistributedDataParallel):
        strategy.model = strategy.model.module
        strategy.configure_ddp()
    reshard(trainer)


def reshard(trainer: Trainer) -> None:
    """Give up the whole weights that FSDP may still hold after an evaluation, and hold parts again.

    Else what is done to the parts would not be seen, or be done to the whole weights.
    """
    model = trainer.strategy.model
    for part in () if model is None else model.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
    for unit in flat_units(trainer):
        if unit._handle is not None and hasattr(unit._handle.flat_param, "_local_shard"):  # it has run
            unit._handle.reshard(True)


def flat_units(trainer: Trainer) -> list[FullyShardedDataParallel]:
    """Return the modules of FSDP1, outer ones first."""
    model = trainer.strategy.model
    return [] if model is None else FullyShardedDataParallel.fsdp_modules(model)


def groups_of(unit: FullyShardedDataParallel) -> Groups:
    """Return the processes over which ``unit`` spreads its parameters; none if each holds them whole."""
    whole = unit.process_group is None or unit.sharding_strategy is ShardingStrategy.NO_SHARD
    groups: Any = () if whole else (unit.process_group,)
    return tuple(groups)


def flat_shards(trainer: Trainer) -> dict[nn.Parameter, Groups]:
    """Return the parameters that FSDP1 holds in flat pieces, with the processes among which.

    Unlike the tensors of FSDP2, these do not tell.
    """
    spread: dict[nn.Parameter, Groups] = {}
    for unit in flat_units(trainer):
        # Outer ones come first; what an inner one holds is not the outer one's.
        spread |= dict.fromkeys(unit.parameters(), groups_of(unit))
    return spread


def flat_shapes(trainer: Trainer) -> dict[nn.Parameter, torch.Size]:
    """Return the whole shapes of the parameters that FSDP1 holds in flat pieces, which tell none."""
    found: dict[nn.Parameter, torch.Size] = {}
    for unit in flat_units(trainer):
        if unit._handle is not None:
            flat = unit._handle.flat_param
            found |= zip(flat._params or (), flat._shapes, strict=True)
    return found


def any_of(trainer: Trainer, answers: list[bool]) -> list[bool]:
    """Return of each answer whether it is yes in any process; all processes give equally many."""
    if trainer.world_size == 1:
        return answers
    together = torch.tensor(answers, dtype=torch.uint8, device=trainer.strategy.root_device)
    dist.all_reduce(together, dist.ReduceOp.MAX)
    return [bool(answer) for answer in together.tolist()]


def check_parts(trainer: Trainer) -> None:
    """Refuse strategies that lay weights out in ways that are not known.

    Raises:
        ValueError: If it is one; names it, and what to do.
    """
    strategy = trainer.strategy
    name = type(strategy).__name__
    if not strategy.restore_checkpoint_after_setup:
        return
    if not isinstance(strategy, FSDPStrategy | ModelParallelStrategy):
        raise ValueError(
            f"strategy must be DDP, FSDP or ModelParallelStrategy to reach all weights, got {name}"
        )
    if any(not unit._use_orig_params for unit in flat_units(trainer)):
        raise ValueError(f"use_orig_params of {name} must be True, or weights have no names, got False")


def check_whole(trainer: Trainer, who: str) -> None:
    """Refuse strategies under which processes hold parts of weights, for ``who``, which looks at data.

    Raises:
        ValueError: If it is one; names it.
    """
    if trainer.strategy.restore_checkpoint_after_setup:
        raise ValueError(
            f"strategy must leave weights whole, as DDP does, for {who}, which looks at data, got "
            f"{type(trainer.strategy).__name__}"
        )


def check_copies(trainer: Trainer, who: str) -> None:
    """Refuse all strategies but one device and DDP, for ``who``, which averages gradients by itself.

    Raises:
        ValueError: If it is another, or DDP with a hook that averages gradients in its own way.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
        raise ValueError(
            f"strategy must be one device or DDP with {who}, which makes several backward passes in a step, "
            f"got {type(strategy).__name__}"
        )
    if getattr(strategy, "_ddp_comm_hook", None) is not None:
        raise ValueError(f"ddp_comm_hook must be None with {who}, which averages gradients itself, got one")


def unsynced(trainer: Trainer) -> AbstractContextManager[Any]:
    """Return a context in which DDP leaves gradients to each process.

    Else it waits for those of all parameters at each backward pass, which may be one over a part of them.
    """
    strategy = trainer.strategy
    return strategy.block_backward_sync() if isinstance(strategy, DDPStrategy) else nullcontext()


def share_buffers(trainer: Trainer) -> None:
    """Let DDP give the first process's buffers to all at the next training step, as it is set up to.

    In manual optimization it would not: Lightning tells it only after the step that gradients are exchanged.
    """
    if isinstance(trainer.strategy.model, DistributedDataParallel):
        trainer.strategy.model.require_forward_param_sync = True


def check_places(trainer: Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Refuse optimizer states that a strategy of shards would give to other parameters than theirs.

    It takes their numbers for places in the module. Those of one process are places in the optimizer, which
    are others where the groups are not in the module's order, or belong to several optimizers.

    Raises:
        ValueError: If they are; says what to do.
    """
    if not isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy):
        return
    places = {parameter: place for place, parameter in enumerate(trainer.lightning_module.parameters())}
    for optimizer, state in zip(trainer.optimizers, checkpoint.get("optimizer_states", []), strict=False):
        now = [places.get(p) for group in optimizer.param_groups for p in group["params"]]
        if now != [number for group in state["param_groups"] for number in group["params"]]:
            raise ValueError(
                "a checkpoint of one process can go on over shards only if its optimizer has the parameters "
                "in the order of the module, but this has not: resume it in one process, or load its weights "
                "alone"
            )


class BeforeLoad:
    """Shows what a checkpoint holds besides tensors of weights, before a strategy loads it into shards.

    Such a strategy loads weights and optimizers at once, after ``on_fit_start``, and shows callbacks the
    rest only then; but it asks of optimizer states that they fit the parameters that are trainable.
    Stands on the strategy in the place of its ``load_checkpoint`` until it is removed.
    """

    def __init__(self, strategy: Strategy, look: Callable[[dict[str, Any]], None]) -> None:
        """Take the place; ``look`` is called with the rest of the checkpoint."""
        self._strategy, self._look = strategy, look
        if strategy.restore_checkpoint_after_setup:
            vars(strategy)["load_checkpoint"] = self

    def __call__(self, checkpoint_path: str | Path, **options: Any) -> dict[str, Any]:
        path = Path(checkpoint_path)
        rest = path / "meta.pt" if path.is_dir() else path
        self._look(torch.load(rest, map_location="cpu", mmap=True, weights_only=True))
        return type(self._strategy).load_checkpoint(self._strategy, checkpoint_path, **options)

    def remove(self) -> None:
        """Give the place back."""
        if vars(self._strategy).get("load_checkpoint") is self:
            del vars(self._strategy)["load_checkpoint"]
