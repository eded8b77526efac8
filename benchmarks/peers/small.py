"""A small network in two parts, and what a run with it did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.toys import Loader, StopError, trainer, weights

__all__ = ["Live", "Net", "Validated", "ema_of", "farthest", "fitted", "floating", "resumed"]

Model = dict[str, Tensor]
Optimizers = Callable[[nn.Module], Any]


def sgd(module: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    """Return the optimizer of what requires a gradient, as Lightning's guide to fine-tuning has it."""
    return torch.optim.SGD(filter(lambda p: p.requires_grad, module.parameters()), lr=lr, momentum=0.9)


class Net(LightningModule):
    """A backbone with BatchNorm, and a head."""

    def __init__(self, optimizers: Optimizers = sgd) -> None:
        """Make it with ``optimizers(self)``."""
        super().__init__()
        torch.manual_seed(1)
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.head = nn.Linear(8, 3)
        self.optimizers_of = optimizers

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.backbone(inputs))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss."""
        return cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss."""
        self.log("val_loss", cross_entropy(self(batch[0]), batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss."""
        self.log("test_loss", cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        """Return what was given."""
        return self.optimizers_of(self)


class Live(Callback):
    """Keeps the weights with which the run begins, and those after each batch."""

    def __init__(self) -> None:
        """Begin without."""
        self.seen: list[Model] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen.append(weights(pl_module))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.seen.append(weights(pl_module))


class Validated(Callback):
    """Keeps the weights that the last evaluation saw."""

    def __init__(self) -> None:
        """Begin without."""
        self.seen: Model = {}

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.seen = weights(pl_module)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.seen = weights(pl_module)


def fitted(*callbacks: Callback, module: LightningModule | None = None, **settings: Any) -> LightningModule:
    """Return ``module``, or a new :class:`Net`, after three epochs of five batches."""
    module = Net() if module is None else module
    batches = settings.pop("batches", 5)
    path = settings.pop("ckpt_path", None)
    trainer(*callbacks, **settings).fit(
        module, Loader(batches), Loader(2, seed=9, fixed=True), ckpt_path=path, weights_only=True
    )
    return module


class Stop(Callback):
    """Saves a checkpoint after ``count`` batches, and breaks the run off."""

    def __init__(self, count: int, path: Path) -> None:
        """Begin to count."""
        self.left, self.path = count, path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.left -= 1
        if not self.left:
            trainer.save_checkpoint(self.path)
            raise StopError


def resumed(
    build: Callable[[], tuple[LightningModule, list[Callback]]], folder: Path, after: int, **settings: Any
) -> LightningModule:
    """Return the module of a run that was broken off after so many batches, and resumed by a new Trainer."""
    path = folder / f"after_{after}.ckpt"
    module, callbacks = build()
    try:
        fitted(*callbacks, Stop(after, path), module=module, **settings)
    except StopError:
        module, callbacks = build()
        return fitted(*callbacks, module=module, ckpt_path=path, **settings)
    raise AssertionError(f"the run ended before batch {after}")


def farthest(first: Model, second: Model) -> float:
    """Return the largest difference between two sets of weights of the same names."""
    assert first.keys() == second.keys(), first.keys() ^ second.keys()
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


def floating(model: Model) -> Model:
    """Return the floating weights alone."""
    return {name: value for name, value in model.items() if value.is_floating_point()}


def ema_of(seen: list[Model], decay: float) -> Model:
    """Return the exponential moving average of floating weights in double precision, from the first on."""
    average, *rest = [{name: value.double() for name, value in floating(one).items()} for one in seen]
    for one in rest:
        average = {name: decay * value + (1 - decay) * one[name] for name, value in average.items()}
    return average
