"""Mixins as the contract suite runs them: mixed into a toy module when Lightning sets the run up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_tricks import Distillation, OptimizerMixin, OptimizerSettings, Teacher, Teachers
from tests.toys import Toy, TwoOptimizers, seed


class Mixes(Callback):
    """Makes OptimizerMixin the first base of the module's class.

    Attributes:
        settings: Gives the settings for a module.
    """

    def __init__(self, settings: Callable[[Toy], Any]) -> None:
        self.settings = settings

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            kind, own = type(pl_module), {"optimizer_settings": self.settings(pl_module)}
            pl_module.__class__ = type(kind.__name__, (OptimizerMixin, kind), own)


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
