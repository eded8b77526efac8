"""Trials that are worse than others were at the same point are ended: reported from Lightning's validation."""

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

__all__ = ["PRUNERS", "Pruning", "Reports"]


def _median() -> BasePruner:
    from optuna.pruners import MedianPruner

    return MedianPruner()


def _none() -> BasePruner:
    from optuna.pruners import NopPruner

    return NopPruner()


PRUNERS = {"median": _median, "none": _none}
"""Optuna's pruners by name: ``MedianPruner``, which lets five trials finish first, and none."""


@dataclass
class Reports:
    """What a trial has reached so far, for its own study's pruner.

    Args:
        storage: Of Optuna.
        study: Its name.
        trial: Its number in the storage.
        pruner: By its name in :data:`PRUNERS`.
        metric: What is reported.
    """

    storage: BaseStorage
    study: str
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
        import optuna

        if not math.isfinite(value):
            raise ValueError(f"{self.metric} was {value} in validation {self._step + 1}")
        self.storage.set_trial_intermediate_value(self.trial, self._step, value)
        self._step += 1
        opened = optuna.load_study(study_name=self.study, storage=self.storage)
        if PRUNERS[self.pruner]().prune(opened, self.storage.get_trial(self.trial)):
            raise optuna.TrialPruned


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
