"""What a run is told in words, and the list of callbacks it is told about."""

from __future__ import annotations

import sys
import warnings
from typing import Any
from weakref import WeakKeyDictionary

from lightning.pytorch import Callback, Trainer

__all__ = ["begin_run", "callbacks_of", "is_trial", "say", "warn"]

# What each run has been warned of, in Python's own form: its one for a module would be the process's.
_warned: WeakKeyDictionary[Trainer, dict[Any, int]] = WeakKeyDictionary()


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return the callbacks of ``trainer`` in the order in which Lightning calls them."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    return callbacks


def begin_run(trainer: Trainer) -> None:
    """Let the run that begins be warned of what another of ``trainer`` was warned of."""
    _warned.pop(trainer, None)


def warn(trainer: Trainer, message: str) -> None:
    """Warn once per run, not once per process; a trial run (barebones, fast_dev_run) is left in peace."""
    if _speaks(trainer):
        # In the name of the package: who hides Lightning's warnings still sees these.
        caller = sys._getframe(1)
        file, name = caller.f_code.co_filename, caller.f_globals["__name__"]
        known = _warned.setdefault(trainer, {})
        warnings.warn_explicit(message, UserWarning, file, caller.f_lineno, name, registry=known)


def say(trainer: Trainer, message: str) -> None:
    """Print a line or a table, likewise, above any progress bar."""
    if _speaks(trainer):
        print(message)


def is_trial(trainer: Trainer) -> bool:
    """Return whether the run is only tried out (barebones, fast_dev_run)."""
    return bool(trainer.barebones or vars(trainer)["fast_dev_run"])


def _speaks(trainer: Trainer) -> bool:
    return trainer.is_global_zero and not is_trial(trainer)
