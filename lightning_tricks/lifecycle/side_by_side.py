"""Sets of weights side by side: one that is evaluated, and others that may be measured along with it."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_tricks.core import checks
from lightning_tricks.lifecycle.evaluation import validate_again
from lightning_tricks.lifecycle.member import Member
from lightning_tricks.lifecycle.notice import callbacks_of

__all__ = ["check_role", "check_side_by_side", "log_again"]


def check_role(*, evaluate: bool, validate: bool, save: str) -> None:
    """Check settings of the names.

    Raises:
        TypeError: If one is of another type.
        ValueError: If ``save`` is no place, or one of them asks for what ``evaluate`` rules out.
    """
    checks.one_of("save", save, ("average", "live"))
    if not checks.flag("evaluate", evaluate) and save == "live":
        raise ValueError("save must be left out where evaluate=False keeps the average apart, got 'live'")
    if checks.flag("validate", validate) and evaluate:
        raise ValueError("validate must be left out where evaluate=True validates the average, got True")


def check_side_by_side(trainer: Trainer, member: Member, name: str) -> None:
    """Accept a run in whose ``on_validation_end`` ``member`` may call :func:`log_again`.

    Raises:
        ValueError: If it has no validation, or the module then still holds the average of a later one.
    """
    if not trainer.enable_validation:
        raise ValueError(f"validate of {name} needs validation, but the run has none")
    callbacks = callbacks_of(trainer)
    later = callbacks[callbacks.index(member) + 1 :]
    evaluated = [each for each in later if isinstance(each, Member) and each.evaluates_average]
    if evaluated:
        raise ValueError(
            f"validate of {name} needs the average that is evaluated to be listed before it, got it after: "
            f"put {evaluated[0].state_key} first"
        )


def log_again(trainer: Trainer, pl_module: LightningModule, prefix: str) -> None:
    """Validate the module as it is once more, and log the metrics of that under ``prefix``.

    To be called in ``on_validation_end``, for the step that the validation itself has logged. Later callbacks
    find them among ``trainer.callback_metrics``.
    """
    metrics = {f"{prefix}/{name}": value for name, value in validate_again(trainer, pl_module).items()}
    connector = trainer._logger_connector
    connector._callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
    connector.log_metrics(metrics)  # type: ignore[arg-type]  # plain numbers do as well
