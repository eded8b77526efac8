"""Trials that do worse than others did at the same point are ended, from Lightning's validation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.storages import BaseStorage
    from optuna.study import Study

__all__ = ["PRUNERS", "Pruning", "Reports"]


def _median() -> BasePruner:
    from optuna.pruners import MedianPruner

    # The first validation judges nobody: many techniques begin slowly.
    return MedianPruner(n_warmup_steps=1)


def _none() -> BasePruner:
    from optuna.pruners import NopPruner

    return NopPruner()


PRUNERS = {"median": _median, "none": _none}
"""Optuna's pruners by name: ``MedianPruner``, which lets five trials finish first, and none."""


@dataclass
class Reports:
    """What a trial has reached so far, for its study's pruner.

    Args:
        study: Of Optuna.
        storage: That holds it.
        trial: Its number there.
        pruner: By its name in :data:`PRUNERS`.
        metric: What is reported.
    """

    study: Study
    storage: BaseStorage
    trial: int
    pruner: str
    metric: str
    _step: int = 0

    def add(self, value: float) -> None:
        """Report a value.

        Raises:
            TrialPruned: If the trial is to be ended.
            ValueError: If the value is not finite.
        """
        from optuna import TrialPruned

        if not math.isfinite(value):
            raise ValueError(f"{self.metric} was {value} in validation {self._step + 1}")
        self.storage.set_trial_intermediate_value(self.trial, self._step, value)
        self._step += 1
        if PRUNERS[self.pruner]().prune(self.study, self.storage.get_trial(self.trial)):
            raise TrialPruned


class Pruning(Callback):
    """Reports the metric of each validation while training.

    Args:
        metric: That is logged.
        report: Gets its value; what it raises ends the training.
    """

    def __init__(self, metric: str, report: Callable[[float], None]) -> None:
        """Take what is reported, and where to."""
        self._metric, self._report = metric, report

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            value = trainer.callback_metrics.get(self._metric)
            if value is not None:
                self._report(float(value))
