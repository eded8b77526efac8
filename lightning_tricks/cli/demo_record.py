"""What the demo notes down while it trains: rates, gradient norms, what is trainable, scores, times."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics.aggregation import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from lightning_tricks.core.gradients import gradients_of
from lightning_tricks.core.norms import total_norm

__all__ = ["Record", "Recorder", "Score", "evaluate"]


class Score(NamedTuple):
    """What weights are worth on validation data: accuracy in [0, 1], and mean cross entropy in nats."""

    accuracy: float
    loss: float


@dataclass
class Record:
    """One training phase.

    Attributes:
        rates: For each parameter group its learning rate per step; NaN while the group is frozen.
        norms: Global L2 norm of the gradient per step, as it comes from the backward pass.
        clipped_norms: The same when the optimizer has used it.
        trainable: Parameters that need a gradient, per step.
        seconds: From the start of one step to the start of the next, except over the end of an epoch.
        epoch_ends: Steps done at the end of each epoch.
        live: Score of the weights that are trained, per epoch.
        validated: Score of the weights that the Trainer validates, per epoch.
    """

    rates: dict[str, list[float]] = field(default_factory=dict)
    norms: list[float] = field(default_factory=list)
    clipped_norms: list[float] = field(default_factory=list)
    trainable: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    epoch_ends: list[int] = field(default_factory=list)
    live: list[Score] = field(default_factory=list)
    validated: list[Score] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Optimizer steps done."""
        return len(self.norms)


@torch.no_grad()
def evaluate(module: LightningModule, batches: Iterable[list[Tensor]], *, classes: int) -> Score:
    """Return the score of the weights that ``module`` holds, and leave it as it was.

    Args:
        module: Maps images to logits, shape (n, ``classes``).
        batches: Of images and labels.
        classes: Number of classes.
    """
    modes = [(part, part.training) for part in module.modules()]
    accuracy, loss = MulticlassAccuracy(num_classes=classes, average="micro"), MeanMetric()
    module.eval()
    for images, labels in batches:
        logits = module(images)
        accuracy.update(logits, labels)
        loss.update(F.cross_entropy(logits, labels, reduction="none"))
    for part, mode in modes:
        part.training = mode
    return Score(accuracy.compute().item(), loss.compute().item())


class Recorder(Callback):
    """Fills a :class:`Record`; the first callback, so that it sees gradients before anything else does."""

    def __init__(self, *, classes: int, on_step: Callable[[], None]) -> None:
        """Take the number of classes, and what to call after every step."""
        self.record: Record = Record()
        self._classes, self._on_step = classes, on_step
        self._groups: list[str] = []
        self._step_began: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        names = {parameter: name for name, parameter in pl_module.named_parameters()}
        self._groups = [
            _shared_part([names[parameter] for parameter in group["params"]])
            for group in trainer.optimizers[0].param_groups
        ]
        self.record.rates = {name: [] for name in self._groups}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step_began = None

    def on_train_batch_start(self, *_: Any) -> None:
        now = time.perf_counter()
        if self._step_began is not None:
            self.record.seconds.append(now - self._step_began)
        self._step_began = now

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        self.record.norms.append(_norm(optimizer))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        optimizer = trainer.optimizers[0]
        self.record.clipped_norms.append(_norm(optimizer))
        # Groups of one name differ in other things than their rate.
        for name, group in dict(zip(self._groups, optimizer.param_groups, strict=True)).items():
            learns = any(parameter.requires_grad for parameter in group["params"])
            self.record.rates[name].append(group["lr"] if learns else math.nan)
        self.record.trainable.append(sum(p.numel() for p in pl_module.parameters() if p.requires_grad))
        self._on_step()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = trainer.callback_metrics
        self.record.validated.append(Score(found["val_accuracy"].item(), found["val_loss"].item()))
        batches: Iterable[list[Tensor]] = trainer.val_dataloaders or ()
        score = evaluate(pl_module, batches, classes=self._classes)
        self.record.live.append(score)
        self.record.epoch_ends.append(self.record.steps)
        pl_module.log_dict({"live/val_accuracy": score.accuracy, "live/val_loss": score.loss})


def _norm(optimizer: Optimizer) -> float:
    return total_norm(gradients_of(optimizer), 2.0).item()


def _shared_part(names: list[str]) -> str:
    """Return the part of the network that holds all of ``names``, such as ``groups.1``."""
    parts = {re.sub(r"^network\.(groups\.\d+|\w+).*", r"\1", name) for name in names}
    return parts.pop() if len(parts) == 1 else "all layers"
