"""Fine-tuning by finetuning-scheduler, as its documentation has it."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback

__all__ = ["scheduled"]


def scheduled(**options: Any) -> list[Callback]:
    """Return its callback that opens the head, then after an epoch the backbone.

    https://finetuning-scheduler.readthedocs.io/en/stable/#specifying-a-fine-tuning-schedule, which opens
    the second by epoch; ``restore_best`` off, since the best weights are another question than the last.
    """
    from finetuning_scheduler import FinetuningScheduler

    phases = {
        0: {"params": [r"head.*"], "max_transition_epoch": 1},
        1: {"params": [r"backbone.*"], "lr": 0.1},
    }
    settings = {"ft_schedule": phases, "restore_best": False}
    return [FinetuningScheduler(**{**settings, **options})]
