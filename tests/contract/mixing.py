"""A mixin as the contract suite runs it: mixed into a toy module when Lightning sets the run up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_tricks import BalancedLosses, OptimizerMixin, OptimizerSettings
from lightning_tricks.objectives.loss_balance import LossBalance
from tests.toys import Toy, TwoOptimizers


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
