"""Precise BatchNorm: running statistics estimated anew for the weights that are evaluated.

    mean = sum over all x of x / n,    var = sum over all x of (x - mean) ** 2 / n

per channel, over every entry that reaches a layer in some batches of training, instead of an average over
steps whose weights are gone.

References: Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021, https://arxiv.org/abs/2105.07576,
section 3, whose 200 batches are the default; of small batches, Wu and He, "Group Normalization", 2018,
https://arxiv.org/abs/1803.08494, table 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_tricks.core import checks
from lightning_tricks.core.tensors import copy_
from lightning_tricks.lifecycle.batchnorm import (
    learning_batchnorms,
    reestimate_batchnorm,
    reestimate_for_validation,
)
from lightning_tricks.lifecycle.notice import warn
from lightning_tricks.lifecycle.position import train_loaders
from lightning_tricks.lifecycle.technique import Technique

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from lightning_tricks.core.conflicts import Claim

__all__ = ["PreciseBatchNorm"]

_SMALL_BATCH = 16


@final
@dataclass(eq=False, repr=False, kw_only=True)
class PreciseBatchNorm(Technique):
    """Estimate BatchNorm statistics over training batches before they are used for evaluation.

    * **When** before each validation within ``fit``, for the weights that it evaluates (the average, with
      one), and at the end of ``fit``, for those that it leaves behind, fused ones too: they are what test and
      predict see. Not in the sanity check, whose weights have not been trained yet.
    * **Changes** the running statistics, and nothing else: training does not use them, and goes on with
      averages that begin there. Layers in eval mode keep theirs. Random numbers, metrics and the places of
      loaders stay as they are.
    * **Logs** nothing; warns of batches below 16 samples, whose statistics are noisy in training, too.
    * **Saves** nothing: a checkpoint written at a validation holds the statistics that were validated, one
      written between two what training has made of them since. Evaluations outside of ``fit`` estimate none.
    * **Cost** a forward pass over ``batches`` batches by the module's own ``training_step``, all else in eval
      mode; a copy of the weights for as long.
    * **Use** with an average of weights, small batches, or weights that move fast; **not** needed with
      ``WeightFusion`` alone, which does it by itself, nor with frozen or group normalisation; refused beside
      ``SWAWeights`` and ``LAWA``, which do it for their means, but for ``update_batchnorm=False``.

    Args:
        batches: How many training batches to look at, at least 1; at most an epoch.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[PreciseBatchNorm(batches=50)], logger=False)
        >>> PreciseBatchNorm()
        PreciseBatchNorm(batches=200)
    """

    batches: int = 200
    _former: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list, init=False, repr=False)
    _estimates: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        checks.whole("batches", self.batches, 1)

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not learning_batchnorms(pl_module):
            raise ValueError(
                "the module must have a BatchNorm whose statistics move in training, got none in "
                f"{type(pl_module).__name__}: remove {self.state_key}"
            )

    def claims(self) -> Iterable[Claim]:
        return [self.claim("batchnorm", None)]

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        apart = any(not isinstance(layer, nn.SyncBatchNorm) for layer in learning_batchnorms(pl_module))
        sizes = [getattr(loader, "batch_size", None) for loader in train_loaders(trainer)]
        known = [size for size in sizes if type(size) is int]
        if apart and known and min(known) < _SMALL_BATCH:
            warn(
                trainer,
                f"BatchNorm should see at least {_SMALL_BATCH} samples at a time, got {min(known)}: take "
                "larger batches, or ReplaceNorm(to='group')",
            )

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Here, where every callback has put in the weights that it wants evaluated.
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        norms = [layer for layer in pl_module.modules() if isinstance(layer, _BatchNorm)]
        buffers = [buffer for layer in norms for buffer in layer.buffers(recurse=False)]
        copies = [buffer.clone() for buffer in buffers]
        reestimate_for_validation(trainer, pl_module, most=self.batches)
        self._former = [(buffer, copy, buffer.clone()) for buffer, copy in zip(buffers, copies, strict=True)]
        self._estimates += 1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._former = []  # what is saved now is what was validated

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        reestimate_batchnorm(trainer, pl_module, most=self.batches)
        self._estimates += 1

    def undo(self) -> None:
        # Only what still stands there: others may have taken out what they had put in.
        for buffer, former, ours in self._former:
            if torch.equal(buffer, ours):
                copy_([buffer], [former])
        self._former = []

    def outcome(self) -> dict[str, float | int | str]:
        return {"estimates": self._estimates}
