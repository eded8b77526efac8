"""A mixin as the contract suite runs it: mixed into a toy module when Lightning sets the run up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_tricks import OptimizerMixin, OptimizerSettings
from tests.toys import Toy, TwoOptimizers


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
