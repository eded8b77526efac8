"""BatchNorm statistics, estimated anew over the training data for weights that never saw a batch.

    mean = sum over all x of x / n,    var = sum over all x of (x - mean) ** 2 / n

per channel, over every entry that reaches the layer in one pass. Running means and cumulative averages
(``torch.optim.swa_utils.update_bn``) take batch variances instead: they leave out how much batch means
differ, and count a small last batch as much as a full one.

The pass calls the module's own ``training_step``, on which every BatchNorm layer was trained
(``update_bn`` calls ``forward(batch[0])``), and everything but the statistics is put back.

Reference: Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021, https://arxiv.org/abs/2105.07576,
section 3 (Precise BatchNorm). Their 200 batches bound the pass where a loader has no length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_tricks.core.fingerprint import fingerprint
from lightning_tricks.core.select import clean_name
from lightning_tricks.core.tensors import local
from lightning_tricks.lifecycle.evaluation import modes_without_evaluation, replaced
from lightning_tricks.lifecycle.outside_fit import training_in_reach
from lightning_tricks.lifecycle.strategies import flat_shards, reshard
from lightning_tricks.lifecycle.training_pass import only_looking, training_steps

__all__ = [
    "Moments",
    "learning_batchnorms",
    "moments_of_all",
    "reestimate_batchnorm",
    "reestimate_for_validation",
    "reestimate_outside_fit",
    "statistics_fingerprint",
    "trained_batchnorms",
]


class Moments:
    """Mean and summed squared deviation per channel of all data seen, merged batch by batch.

    Attributes:
        count: Entries per channel seen so far.
        mean: Their mean, shape (channels,), at least float32.
        squares: Sum of their squared deviations from ``mean``, of the same shape and type.
    """

    def __init__(self, like: Tensor) -> None:
        """Start with nothing seen; ``like``, shape (channels,), gives device and least type."""
        self.count: int = 0
        self.mean: Tensor = torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))
        self.squares: Tensor = torch.zeros_like(self.mean)

    @torch.no_grad()
    def add(self, batch: Tensor) -> None:
        """Take in ``batch``, shape (samples, channels, ...), the input of a BatchNorm layer."""
        entries = batch.transpose(0, 1).flatten(1).to(self.mean)
        if entries.shape[1]:
            mean = entries.mean(1)
            self.merge(entries.shape[1], mean, (entries - mean[:, None]).square().sum(1))

    def merge(self, count: int, mean: Tensor, squares: Tensor) -> None:
        """Take in ``count`` > 0 entries of which mean and summed squared deviation are known."""
        # Merged so, and not as a difference of two large sums, a mean far from zero costs no digits.
        total, shift = self.count + count, mean - self.mean
        self.mean = self.mean + shift * (count / total)
        self.squares = self.squares + squares + shift.square() * (self.count * count / total)
        self.count = total


def learning_batchnorms(module: nn.Module, modes: Mapping[str, bool] | None = None) -> list[_BatchNorm]:
    """Return the BatchNorm layers whose running statistics move in training.

    Left out are layers in eval mode, which is how they are frozen, and those that track nothing.

    Args:
        module: Holds them.
        modes: Which modules, by name, are to count as in training mode, and which not; ``None`` for as they
            are.
    """
    known = modes or {}
    return [
        layer
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm)
        and layer.running_mean is not None
        and known.get(name, layer.training)
    ]


def trained_batchnorms(trainer: Trainer, pl_module: LightningModule) -> list[_BatchNorm]:
    """Return those that are in training mode outside of the evaluation that may be under way.

    Of a module that is all in eval mode there, these are all: it was put there to be evaluated.
    """
    modes = modes_without_evaluation(trainer)
    if modes and not any(modes.values()):
        modes = dict.fromkeys(modes, True)
    return learning_batchnorms(pl_module, modes)


def reestimate_batchnorm(
    trainer: Trainer,
    pl_module: LightningModule,
    *,
    most: int | None = None,
    layers: list[_BatchNorm] | None = None,
) -> int:
    """Set the running statistics of ``pl_module`` to those of its training data under its weights.

    To be called in ``on_train_end``, while modules are still in the modes of training. The layers use batch
    statistics during the pass, as in training; all other modules are in eval mode, so nothing drops out. A
    layer that sees no data keeps its statistics; ``num_batches_tracked`` becomes the number of batches.

    On several processes each goes through its own batches, of which a layer takes its batch statistics, as
    in training (SyncBatchNorm those of all processes' batches together). What it sees in all of them makes
    one set of statistics, the same everywhere, and ``num_batches_tracked`` counts those of the first. So the
    first layer gets what one process with the whole batches would give it; one behind another BatchNorm what
    one process would that takes the processes' batches one after the other.

    Args:
        trainer: The Trainer of the run.
        pl_module: Its module.
        most: Batches to look at; ``None`` for an epoch.
        layers: Of which layers; ``None`` for those that :func:`learning_batchnorms` finds.

    Returns:
        The number of layers concerned; 0 if there are none, and then there is no pass.
    """
    layers = learning_batchnorms(pl_module) if layers is None else layers
    if not layers:
        return 0
    seen, batches = _look(trainer, pl_module, layers, most)
    batches = trainer.strategy.broadcast(batches)
    for layer, moments in zip(layers, seen, strict=True):
        _set_statistics(trainer, layer, moments, batches)
    return len(layers)


def reestimate_for_validation(
    trainer: Trainer,
    pl_module: LightningModule,
    *,
    most: int | None = None,
    layers: list[_BatchNorm] | None = None,
) -> int:
    """Do the same within a validation of ``fit``, for the weights that it is about to evaluate.

    Of ``layers``, or else of those that :func:`trained_batchnorms` finds.
    """
    layers = trained_batchnorms(trainer, pl_module) if layers is None else layers
    validation = trainer.fit_loop.epoch_loop.val_loop
    with ExitStack() as stack:
        # Its loader is not read, and has begun an epoch that must not begin again.
        stack.enter_context(replaced(validation, {"_combined_loader": None}))
        stack.enter_context(replaced(trainer.state, {"stage": RunningStage.TRAINING}))
        stack.enter_context(torch.enable_grad())
        return reestimate_batchnorm(trainer, pl_module, most=most, layers=layers)


def reestimate_outside_fit(
    trainer: Trainer, pl_module: LightningModule, *, most: int, layers: list[_BatchNorm], given: Any = None
) -> int:
    """Do the same within an evaluation outside of ``fit``, before its first batch.

    Args:
        trainer: The Trainer of the run.
        pl_module: Its module.
        most: Batches to look at.
        layers: Of which layers.
        given: Training loaders to take instead of those that ``pl_module`` would make.

    Raises:
        OutOfReachError: If there is no training batch to look at; nothing has changed then.
    """
    with training_in_reach(trainer, pl_module, given=given):
        return reestimate_batchnorm(trainer, pl_module, most=most, layers=layers)


def statistics_fingerprint(trainer: Trainer, pl_module: LightningModule, layers: list[_BatchNorm]) -> int:
    """Return a number that tells whether weights have changed, or the statistics of ``layers``.

    It is the same in all processes, and for weights that each of them holds whole or all in parts.
    """
    reshard(trainer)
    tensors = dict(pl_module.named_parameters())
    for name, layer in pl_module.named_modules():
        if layer in layers:
            tensors |= {f"{name}.{key}": buffer for key, buffer in layer.named_buffers(recurse=False)}
    spread = flat_shards(trainer)
    own = {
        clean_name(name): local(tensor)
        for name, tensor in tensors.items()
        if trainer.is_global_zero or isinstance(tensor, DTensor) or spread.get(tensor)
    }
    return int(trainer.strategy.reduce(fingerprint(own, trainer.strategy.root_device), reduce_op="sum"))


def _look(
    trainer: Trainer, pl_module: LightningModule, layers: list[_BatchNorm], most: int | None
) -> tuple[list[Moments], int]:
    """Return what each layer saw in a pass over ``most`` batches of training, and how many there were."""
    seen = [Moments(layer.running_mean) for layer in layers if layer.running_mean is not None]
    with only_looking(trainer, pl_module, layers), ExitStack() as stack:
        for layer, moments in zip(layers, seen, strict=True):
            stack.callback(layer.register_forward_pre_hook(_watcher(moments), with_kwargs=True).remove)
        return seen, training_steps(trainer, pl_module, most)


def _watcher(moments: Moments) -> Callable[..., None]:
    def watch(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        moments.add(args[0] if args else kwargs["input"])

    return watch


@torch.no_grad()
def moments_of_all(trainer: Trainer, moments: Moments) -> tuple[float, Tensor, Tensor]:
    """Return count, mean and variance of the entries that all processes have seen together."""
    total = moments.mean.new_tensor(moments.count)
    count = trainer.strategy.reduce(total.clone(), reduce_op="sum")
    if not count:
        return 0.0, moments.mean, moments.squares
    mean = trainer.strategy.reduce(moments.mean * total, reduce_op="sum") / count
    spread = moments.squares + total * (moments.mean - mean).square()
    return float(count), mean, trainer.strategy.reduce(spread, reduce_op="sum") / count


@torch.no_grad()
def _set_statistics(trainer: Trainer, layer: _BatchNorm, moments: Moments, batches: int) -> None:
    count, mean, var = moments_of_all(trainer, moments)
    if not count:
        return
    assert layer.running_mean is not None and layer.running_var is not None
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(var)
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.fill_(batches)
