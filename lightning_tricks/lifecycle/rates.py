"""Learning rates that techniques write, shown to Lightning as if a scheduler wrote them."""

from __future__ import annotations

from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["RateView", "scale_rates", "show_rates"]


class RateView:
    """A scheduler that changes nothing: it lets LearningRateMonitor and ``lr_schedulers()`` see the rates.

    Rates follow the clock, in manual optimization too, where Lightning steps no scheduler. No subclass of
    torch's, or LightningCLI would offer it to users as a scheduler of their own.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        """Look at ``optimizer``; torch's own constructor would already take a step."""
        self.optimizer = optimizer
        self.last_epoch = 0

    def get_last_lr(self) -> list[float | torch.Tensor]:
        """Return the rate of each group, as it is now."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def step(self, epoch: int | None = None) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing, since nothing is kept here."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take nothing back."""


def show_rates(trainer: Trainer) -> None:
    """Make today's rates the base rates of all groups, and attach a view of each optimizer.

    To be called in ``on_fit_start``, after all regrouping. An ``initial_lr`` that an earlier scheduler or
    a rate finder left behind is overwritten.
    """
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"] = group["lr"].clone()  # it may be the module's own, for a later optimizer too
            group["initial_lr"] = float(group["lr"])
        config = LRSchedulerConfig(cast(LRScheduler, RateView(optimizer)), interval="step")
        trainer.strategy.lr_scheduler_configs.append(config)


def scale_rates(trainer: Trainer, factor: float) -> None:
    """Set the rate of every parameter group to ``factor`` times its base rate."""
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            # A checkpoint written without any schedule holds no base rate.
            rate = group.setdefault("initial_lr", float(group["lr"])) * factor
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
