"""The metrics that a fusion goes by: the one that decides, and the one by which its method evaluates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

from lightning_tricks.lifecycle.evaluation import (
    Objective,
    logged_by_module,
    logged_by_validation,
    objective_of,
)

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from lightning_tricks.fusion.methods import FusionMethod

__all__ = ["Measures"]

_OTHERWISE = "keep='always' with a method and a collection that measure nothing, and no curve"


@dataclass(frozen=True)
class Measures:
    """Both, as far as they are needed.

    Attributes:
        objective: What decides; ``None`` if nothing is asked.
        target: What the method evaluates candidates by; ``None`` if it evaluates none.
    """

    objective: Objective | None = None
    target: Objective | None = None

    @classmethod
    def of(
        cls, trainer: Trainer, method: FusionMethod, monitor: str | None, mode: str | None, *, needed: bool
    ) -> Self:
        """Return those of a run, in ``on_fit_start``.

        Args:
            trainer: The Trainer of the run.
            method: How it is fused.
            monitor: The metric that decides; ``None`` for that of ModelCheckpoint.
            mode: Which way it is better; ``None`` as there.
            needed: Whether something must decide, ``monitor`` given or not.

        Raises:
            ValueError: If a metric that is needed is unknown, or the run has no validation.
        """
        resolve = partial(objective_of, trainer, otherwise=_OTHERWISE)
        objective = resolve(monitor, mode) if needed or monitor is not None else None
        if method.objective is None:
            return cls(objective)
        its_own, its_mode = method.objective
        its_mode = its_mode or (mode if its_own in (None, monitor) else None)
        return cls(objective, resolve(its_own or monitor, its_mode))

    def seen(self, trainer: Trainer, pl_module: LightningModule) -> float | None:
        """Return the score by what decides, in ``on_validation_end``; ``None`` if nothing does.

        Raises:
            MissingMetricError: If one of both is not logged, lest the end of the run be the first to find it.
        """
        wanted = [each for each in (self.objective, self.target) if each is not None]
        if not wanted:
            return None
        logged = logged_by_module(trainer, pl_module)
        others = logged_by_validation(trainer)
        scores = [each.score(logged, others=others) for each in wanted]
        return None if self.objective is None else scores[0]
