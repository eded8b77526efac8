"""Three ways to let a head learn first and its backbone from the second epoch on, each as documented."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BackboneFinetuning

import lightning_tricks as lt

__all__ = ["lightnings", "ours", "scheduled"]


def ours() -> list[Callback]:
    """Return the technique."""
    return [lt.ProgressiveUnfreeze(stages=["head", "backbone"], at="1 epoch")]


def lightnings() -> list[Callback]:
    """Return Lightning's callback, with a rate that stays."""
    return [BackboneFinetuning(unfreeze_backbone_at_epoch=1, lambda_func=lambda _: 1.0)]


def scheduled(**options: Any) -> list[Callback]:
    """Return that of finetuning-scheduler.

    https://finetuning-scheduler.readthedocs.io/en/stable/#specifying-a-fine-tuning-schedule, which opens
    the second phase by epoch; ``restore_best`` off, since the best weights are another question.
    """
    from finetuning_scheduler import FinetuningScheduler

    phases = {
        0: {"params": [r"head.*"], "max_transition_epoch": 1},
        1: {"params": [r"backbone.*"], "lr": 0.1},
    }
    return [FinetuningScheduler(**{"ft_schedule": phases, "restore_best": False, **options})]
