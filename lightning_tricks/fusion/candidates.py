"""Candidates for the weights of a module: put into it, settled and measured at the end of a run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from lightning_tricks.fusion.methods import FusionMethod, Model
from lightning_tricks.fusion.snapshots import Shelf
from lightning_tricks.fusion.weights import put_
from lightning_tricks.lifecycle.batchnorm import reestimate_batchnorm
from lightning_tricks.lifecycle.evaluation import Objective, validate_again
from lightning_tricks.lifecycle.notice import say

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

__all__ = ["Candidates"]


@dataclass(frozen=True)
class Candidates:
    """Tries weights in a module, with the run's own data.

    Attributes:
        trainer: The Trainer of the run.
        pl_module: Its module.
        update_batchnorm: Whether BatchNorm statistics are estimated anew for each candidate.
        name: Who tries, for messages.
    """

    trainer: Trainer
    pl_module: LightningModule
    update_batchnorm: bool
    name: str

    def settle(self, model: Model) -> None:
        """Put ``model`` into the module, with the statistics that belong to it."""
        put_(self.pl_module, model)
        if self.update_batchnorm:
            reestimate_batchnorm(self.trainer, self.pl_module)

    def fuse(self, shelf: Shelf, method: FusionMethod, objective: Objective | None) -> None:
        """Put what ``method`` makes of the snapshots into the module; on all processes the same.

        Args:
            shelf: The snapshots.
            method: Gets them oldest first.
            objective: What it evaluates candidates by, if it evaluates any.
        """
        models = [
            self.trainer.strategy.broadcast(shelf.load(snapshot) if self.trainer.is_global_zero else {})
            for snapshot in shelf.kept
        ]
        evaluate = None if objective is None else partial(self.evaluate, objective)
        self.settle(method.fuse(models, evaluate))

    def measure(self, objective: Objective) -> float:
        """Return the score of what the module holds, higher is better."""
        return objective.score(validate_again(self.trainer, self.pl_module))

    def evaluate(self, objective: Objective, model: Model) -> float:
        """Put ``model`` into the module, return its score and print a line of it."""
        self.settle(model)
        score = self.measure(objective)
        metric = objective.metric(score)
        say(self.trainer, f"{self.name}: {objective.monitor} of a candidate is {metric:g}")
        return score
