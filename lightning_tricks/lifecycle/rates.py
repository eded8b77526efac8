"""Learning rates that techniques write, shown to Lightning as if a scheduler wrote them.

    rate of a group = its base rate * the product of what each technique scales it by

so that techniques with different reasons to change a rate need not know of one another. One that leads all
rates to a goal has the last word: with the share s of the way made, (1 - s) * that rate + s * its goal.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["RateView", "Rates", "check_rates"]


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


class Rates:
    """What the techniques of a run scale its rates by."""

    def __init__(self) -> None:
        """Know of no technique."""
        self._factors: dict[str, tuple[frozenset[int] | None, float]] = {}
        self._goals: dict[str, tuple[float, float, bool]] = {}
        self._shown = False

    def show(self, trainer: Trainer) -> None:
        """Make today's rates the base rates of all groups, and attach a view of each optimizer.

        To be called in ``on_fit_start``, after all regrouping, by each technique that scales rates. An
        ``initial_lr`` that an earlier scheduler or a rate finder left behind is overwritten.
        """
        for optimizer in [] if self._shown else trainer.optimizers:
            for group in optimizer.param_groups:
                if isinstance(group["lr"], torch.Tensor):
                    group["lr"] = group["lr"].clone()  # it may be the module's own, for a later optimizer too
                group["initial_lr"] = float(group["lr"])
            config = LRSchedulerConfig(cast(LRScheduler, RateView(optimizer)), interval="step")
            trainer.strategy.lr_scheduler_configs.append(config)
        self._shown = True

    def scale(
        self, trainer: Trainer, owner: str, factor: float, *, among: frozenset[int] | None = None
    ) -> None:
        """Scale rates by ``factor`` from now on, instead of what ``owner`` scaled them by before.

        Args:
            trainer: The Trainer of the run.
            owner: Who scales them.
            factor: At least 0.
            among: The ``id`` of each parameter concerned, with all others of its groups; ``None`` for all.
        """
        self._factors[owner] = among, factor
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                if _concerned(group, among):
                    self._set(group)

    def lead(self, trainer: Trainer, owner: str, goal: float, *, share: float, of_base: bool) -> None:
        """Let all rates be ``share`` of the way from what they are scaled to towards a goal, from now on.

        Args:
            trainer: The Trainer of the run.
            owner: Who leads them.
            goal: The rate to reach.
            share: In [0, 1].
            of_base: Whether the goal is a share of each group's base rate.
        """
        self._goals[owner] = share, goal, of_base
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                self._set(group)

    def _set(self, group: dict[str, Any]) -> None:
        if "initial_lr" not in group:  # in a checkpoint that was written without any schedule
            group["initial_lr"] = float(group["lr"])  # not at each step: it may wait for a device
        rate = group["initial_lr"]
        for owner in sorted(self._factors):  # in one order, or a resumed run might differ in the last bit
            among, factor = self._factors[owner]
            if _concerned(group, among):
                rate *= factor
        for share, goal, of_base in self._goals.values():
            rate = (1.0 - share) * rate + share * (goal * group["initial_lr"] if of_base else goal)
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _concerned(group: dict[str, Any], among: frozenset[int] | None) -> bool:
    return among is None or (bool(group["params"]) and id(group["params"][0]) in among)


def check_rates(trainer: Trainer, pl_module: LightningModule) -> None:
    """Accept a run with rates to scale.

    Raises:
        ValueError: If there is no optimizer.
    """
    if not any(optimizer.param_groups for optimizer in trainer.optimizers):
        name = type(pl_module).__name__
        raise ValueError(f"{name}.configure_optimizers must return an optimizer, got none")
