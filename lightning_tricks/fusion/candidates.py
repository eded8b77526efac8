"""Candidates for the weights of a module: fused from its snapshots, put into it, settled and measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from lightning_tricks.core.tensors import Model
from lightning_tricks.fusion.findings import listening
from lightning_tricks.fusion.methods import FusionMethod, TensorwiseMethod, check_finite, floating
from lightning_tricks.fusion.of_module import for_module
from lightning_tricks.fusion.probe import informed, needs_probe
from lightning_tricks.fusion.run_probe import RunProbe
from lightning_tricks.lifecycle.evaluation import Objective, validate_again
from lightning_tricks.lifecycle.notice import say
from lightning_tricks.lifecycle.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_tricks.fusion.base_file import BaseFile
    from lightning_tricks.lifecycle.snapshots import Shelf

__all__ = ["Candidates", "check_method"]


def check_method(method: FusionMethod, weights: Weights) -> None:
    """Accept a method that can fuse what the processes hold of the weights.

    Raises:
        ValueError: If it needs whole tensors where these are parts, does not know what to do with one or with
            the module, or the run cannot show it what it looks at.
    """
    if weights.sharded and not method.entrywise:
        raise ValueError(f"method must be entrywise where weights are sharded, got {method!r}")
    RunProbe(method, weights).check()
    method = for_module(method, weights.module)
    if isinstance(method, TensorwiseMethod) and not needs_probe(method):
        method.resolved(floating(weights.tensors()))


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Tries weights in a module, with the run's own data.

    Attributes:
        weights: Those of the module, with its run.
        shelf: The snapshots.
        method: Gets them oldest first, after its base if that is a file.
        base: That file.
        target: What the method evaluates candidates by, if it evaluates any.
        reestimate: Estimates BatchNorm statistics anew; ``None`` to leave those of a candidate.
        name: Who tries, for messages.
    """

    weights: Weights
    shelf: Shelf
    method: FusionMethod
    base: BaseFile | None
    target: Objective | None
    reestimate: Callable[[], int] | None
    name: str

    def snapshots(self) -> list[Model]:
        """Return the snapshots, oldest first, or this process's parts of them."""
        spread = self.weights.spread
        return self._checked([spread(partial(self.shelf.load, snapshot)) for snapshot in self.shelf.kept])

    def fused(self, found: dict[str, Any] | None = None) -> dict[str, Tensor]:
        """Return what the method makes of them, on all processes the same; ``found`` gets what it tells."""
        models = self.snapshots()
        if self.base is not None:
            models = self._checked([self.base.tensors(), *models])
        evaluate = None if self.target is None else partial(self._tell, self.target)
        with listening({} if found is None else found):
            with RunProbe(self.method, self.weights).opened() as probe:
                method = informed(for_module(self.method, self.weights.module), models, probe)
            return method.fuse(models, evaluate)

    def _checked(self, models: list[Model]) -> list[Model]:
        """Refuse what is not finite in any part, before the process that has it goes its own way."""
        if not self.weights.sharded:
            return models
        error: ValueError | None = None
        try:
            check_finite(models)
        except ValueError as caught:
            error = caught
        if not self.weights.trainer.strategy.reduce_boolean_decision(error is None):
            raise error or ValueError("every model must be finite, but is not in a part of another process")
        return models

    def settle(self, model: Model) -> None:
        """Put ``model`` into the module, with the statistics that belong to it."""
        self.weights.put(model)
        if self.reestimate is not None:
            self.reestimate()

    def measure(self, objective: Objective) -> float:
        """Return the score of what the module holds, higher is better."""
        return objective.score(validate_again(self.weights.trainer, self.weights.module))

    def score(self, objective: Objective, model: Model) -> float:
        """Put ``model`` into the module, with its statistics, and return its score."""
        self.settle(model)
        return self.measure(objective)

    def _tell(self, objective: Objective, model: Model) -> float:
        score = self.score(objective, model)
        metric = objective.metric(score)
        say(self.weights.trainer, f"{self.name}: {objective.monitor} of a candidate is {metric:g}")
        return score
