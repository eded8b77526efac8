"""Candidates for the weights of a module: put into it, settled and measured at the end of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from lightning_tricks.core.tensors import Model
from lightning_tricks.fusion.methods import FusionMethod, TensorwiseMethod, check_finite, floating
from lightning_tricks.fusion.of_module import for_module
from lightning_tricks.lifecycle.batchnorm import reestimate_batchnorm
from lightning_tricks.lifecycle.evaluation import Objective, validate_again
from lightning_tricks.lifecycle.notice import say
from lightning_tricks.lifecycle.snapshots import Shelf
from lightning_tricks.lifecycle.weights import Weights

__all__ = ["Candidates", "check_method"]


def check_method(method: FusionMethod, weights: Weights) -> None:
    """Accept a method that can fuse what the processes hold of the weights.

    Raises:
        ValueError: If its base is a file, it needs whole tensors where these are parts, or it does not know
            what to do with one, or with the module.
    """
    if method.base is not None:
        raise ValueError(f"base must be None, for the oldest snapshot to be it, got {method!r}")
    if weights.sharded and not method.entrywise:
        raise ValueError(f"method must be entrywise where weights are sharded, got {method!r}")
    method = for_module(method, weights.module)
    if isinstance(method, TensorwiseMethod):
        method.resolved(floating(weights.tensors()))


@dataclass(frozen=True)
class Candidates:
    """Tries weights in a module, with the run's own data.

    Attributes:
        weights: Those of the module, with its run.
        update_batchnorm: Whether BatchNorm statistics are estimated anew for each candidate.
        name: Who tries, for messages.
    """

    weights: Weights
    update_batchnorm: bool
    name: str

    def settle(self, model: Model) -> None:
        """Put ``model`` into the module, with the statistics that belong to it."""
        self.weights.put(model)
        if self.update_batchnorm:
            reestimate_batchnorm(self.weights.trainer, self.weights.module)

    def fuse(self, shelf: Shelf, method: FusionMethod, objective: Objective | None) -> None:
        """Put what ``method`` makes of the snapshots into the module; on all processes the same.

        Args:
            shelf: The snapshots.
            method: Gets them oldest first.
            objective: What it evaluates candidates by, if it evaluates any.
        """
        models = [self.weights.spread(partial(shelf.load, snapshot)) for snapshot in shelf.kept]
        if self.weights.sharded:
            self._check_finite(models)
        evaluate = None if objective is None else partial(self.evaluate, objective)
        self.settle(for_module(method, self.weights.module).fuse(models, evaluate))

    def _check_finite(self, models: Sequence[Model]) -> None:
        """Refuse what is not finite in any part, before the process that has it goes its own way."""
        error: ValueError | None = None
        try:
            check_finite(models)
        except ValueError as caught:
            error = caught
        if not self.weights.trainer.strategy.reduce_boolean_decision(error is None):
            raise error or ValueError("every model must be finite, but is not in a part of another process")

    def measure(self, objective: Objective) -> float:
        """Return the score of what the module holds, higher is better."""
        return objective.score(validate_again(self.weights.trainer, self.weights.module))

    def evaluate(self, objective: Objective, model: Model) -> float:
        """Put ``model`` into the module, return its score and print a line of it."""
        self.settle(model)
        score = self.measure(objective)
        metric = objective.metric(score)
        say(self.weights.trainer, f"{self.name}: {objective.monitor} of a candidate is {metric:g}")
        return score
