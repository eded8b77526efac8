"""What a run is told in words, and the list of callbacks it is told about."""

from __future__ import annotations

import warnings

from lightning.pytorch import Callback, Trainer

__all__ = ["callbacks_of", "is_trial", "say", "warn"]


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return the callbacks of ``trainer`` in the order in which Lightning calls them."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    return callbacks


def warn(trainer: Trainer, message: str) -> None:
    """Warn once per run, not once per process; a trial run (barebones, fast_dev_run) is left in peace."""
    if _speaks(trainer):
        # In the name of the package: who hides Lightning's warnings still sees these.
        warnings.warn(message, UserWarning, stacklevel=2)


def say(trainer: Trainer, message: str) -> None:
    """Print a line or a table, likewise, above any progress bar."""
    if _speaks(trainer):
        print(message)


def is_trial(trainer: Trainer) -> bool:
    """Return whether the run is only tried out (barebones, fast_dev_run)."""
    return bool(trainer.barebones or vars(trainer)["fast_dev_run"])


def _speaks(trainer: Trainer) -> bool:
    return trainer.is_global_zero and not is_trial(trainer)
