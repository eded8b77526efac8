"""The metric of each validation, for techniques that wait for one to stall."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from lightning.pytorch import Trainer

from lightning_tricks.core.checks import listed
from lightning_tricks.lifecycle.evaluation import MissingMetricError, Objective, logged_by_validation
from lightning_tricks.lifecycle.notice import warn
from lightning_tricks.lifecycle.technique import Technique

__all__ = ["check_validation", "validated", "watched"]


def watched(monitor: str, logged: Mapping[str, float], *, sanity: bool) -> float | None:
    """Return the metric ``monitor`` of a validation that logged ``logged``.

    Args:
        monitor: Its name.
        logged: The metrics by name.
        sanity: Whether it was a sanity check. That may leave out what a few batches cannot give, so there
            only a name that is nearly one of ``logged`` is taken for a slip.

    Returns:
        Its value; ``None`` if a later validation may yet log it.

    Raises:
        MissingMetricError: If it is missing; gives the nearest name.
    """
    try:
        return Objective(monitor, 1.0).score(logged)
    except MissingMetricError as error:
        if sanity and not difflib.get_close_matches(monitor, logged, n=1, cutoff=0.85):
            return None
        if sanity:
            error.add_note("if only later validations log it, set num_sanity_val_steps=0")
        raise


def check_validation(trainer: Trainer, setting: str, monitor: str) -> None:
    """Accept a run with a validation that logs, which ``setting`` needs to watch ``monitor``.

    Raises:
        ValueError: If it has none, or logs nothing.
    """
    if not trainer.enable_validation:
        raise ValueError(f"{setting} needs validation to watch {monitor!r}, but the run has none")
    if trainer.barebones:
        raise ValueError(
            f"{setting} needs validation to log {monitor!r}, but with barebones=True Lightning logs nothing: "
            "remove barebones"
        )


def validated(technique: Technique, trainer: Trainer, monitor: str) -> float | None:
    """Return the metric ``monitor`` of the validation within ``fit`` that just ended.

    To be called in ``on_validation_end``; the same on all processes.

    Returns:
        Its value; ``None`` if there is none that counts: that of a sanity check does not.

    Raises:
        MissingMetricError: If it is missing, in the sanity check too if that logs one with nearly its name.
    """
    if trainer.state.fn != "fit":
        return None
    logged = logged_by_validation(trainer)
    value = watched(monitor, logged, sanity=trainer.sanity_checking)
    if value is None:
        seen = f"watches {monitor!r}, but the sanity check logged {listed(list(logged)) or 'nothing'}"
        warn(
            trainer,
            f"{technique.state_key} {seen}: if the first validation lacks it too, the run stops there",
        )
    return None if trainer.sanity_checking else value
