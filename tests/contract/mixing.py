"""Mixins as the contract suite runs them: mixed into a toy module when Lightning sets the run up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_tricks import (
    BalancedLosses,
    Distillation,
    OptimizerMixin,
    OptimizerSettings,
    Teacher,
    Teachers,
)
from lightning_tricks.objectives.loss_balance import LossBalance
from tests.toys import Toy, TwoOptimizers, seed


class Mixes(Callback):
    """Makes a mixin the first base of the module's class.

    Attributes:
        settings: Gives the attributes of that class for a module.
        mixin: Which.
    """

    def __init__(self, settings: Callable[[Toy], dict[str, Any]], mixin: type) -> None:
        self.settings, self.mixin = settings, mixin

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            kind, own = type(pl_module), self.settings(pl_module)
            pl_module.__class__ = type(kind.__name__, (self.mixin, kind), own)


def optimized(settings: Callable[[Toy], Any]) -> Mixes:
    """Return what gives a module ``settings`` for its optimizers."""
    return Mixes(lambda module: {"optimizer_settings": settings(module)}, OptimizerMixin)


def balanced(strategy: LossBalance) -> Mixes:
    """Return what gives a module a second loss, of the size of its logits, and a strategy for the two."""
    return Mixes(lambda _: two_tasks(strategy), BalancedLosses)


def two_tasks(strategy: LossBalance) -> dict[str, Any]:
    """Return the attributes of a class for that."""
    return {"loss_balance": strategy, "loss": two_losses, "configure_optimizers": that_learn}


def that_learn(self: Any) -> Any:
    """Return the toy's own optimizers; of several, the first with what is learned for the losses."""
    optimizers = super(BalancedLosses, self).configure_optimizers()
    if isinstance(optimizers, list) and self.loss_balance.learned:
        optimizers[0].add_param_group({"params": [self.loss_log_variances], "weight_decay": 0.0})
    return optimizers


def two_losses(self: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the balance of the toy's own loss and the mean square of its logits."""
    logits = self.head(self.body(batch[0].to(self.head.weight.dtype)))
    total: Tensor = self.balance({"fit": cross_entropy(logits, batch[1]), "size": logits.square().mean()})
    return total


def as_by_hand(module: Toy) -> Any:
    """Return settings that make the optimizers that ``module`` makes itself."""
    fused = {"fused": True} if module.options.get("fused") else {}
    own = OptimizerSettings("AdamW", lr=module.lr, weight_decay=0.0, options=fused)
    if not isinstance(module, TwoOptimizers):
        return own
    body = OptimizerSettings("AdamW", lr=module.lr, weight_decay=0.0, params="body")
    return [body, OptimizerSettings("SGD", lr=module.lr, options={"momentum": 0.9})]


def in_layers(module: Toy) -> Any:
    """Return settings with groups of all kinds; in manual optimization for two optimizers."""
    fused = {"fused": True} if module.options.get("fused") else {}
    common = {"weight_decay": 0.2, "layer_decay": 0.5, "overrides": {"*.bias": {"lr": 0.01}}}
    rest = OptimizerSettings("AdamW", lr=module.lr, options=fused, **common)
    if not isinstance(module, TwoOptimizers):
        return rest
    return [OptimizerSettings("RMSprop", lr=0.01, params="head"), rest]


class Student(Distillation):
    """Comes before a toy module, which then learns from its teachers, too."""

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        if not self.trainer.training:
            return super().loss(batch)
        return self.distill(self.head(self.body(batch[0].to(self.head.weight.dtype))), batch)


def teacher_for(module: Toy, classes: int = 3) -> nn.Sequential:
    """Return a teacher in the precision of ``module``, with what must not act in it."""
    seed(5)
    layers = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, classes)
    return nn.Sequential(*layers).to(module.head.weight.dtype)


class Learns(Callback):
    """Makes Distillation the first base of the module's class, and brings along what Lightning asked before.

    Attributes:
        settings: Those of ``Teachers``.
        features: Those of the teacher.
    """

    def __init__(self, features: dict[str, str] | None = None, **settings: Any) -> None:
        self.features, self.settings = features or {}, settings

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        kind = type(pl_module)
        pl_module.__class__ = type(kind.__name__, (Student, kind), {})
        pl_module.teachers = Teachers(
            Teacher(teacher_for(pl_module), features=self.features), **self.settings
        )
        (part,) = pl_module.configure_callbacks()
        vars(trainer)["callbacks"] = [*trainer.callbacks, part]
        part.setup(trainer, pl_module, stage)
