"""Rates along a schedule through the runs of a Trainer: begun, moved, reported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_tricks.core.schedule import Course, Schedule
from lightning_tricks.lifecycle.notice import say

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from lightning_tricks.lifecycle.technique import Technique

__all__ = ["Following"]


class Following:
    """What every technique does whose rates follow a schedule; which rates and which schedule is its own."""

    def __init__(self) -> None:
        """Know of no run."""
        self._course: Course | None = None
        self._among: frozenset[int] | None = None
        self._factor = 1.0

    def begin(
        self,
        technique: Technique,
        trainer: Trainer,
        schedule: Schedule,
        *,
        among: frozenset[int] | None = None,
        total: int | None = None,
    ) -> None:
        """Lay ``schedule`` over the run, and set the first rate.

        Args:
            technique: Whose rates they are.
            trainer: The Trainer of the run.
            schedule: What base rates are multiplied by.
            among: The ``id`` of each parameter concerned; ``None`` for all.
            total: Optimizer steps of the run, if the Trainer's own length is not meant.
        """
        self._among = among
        self._course = technique.lay(trainer, "the rate", schedule, total=total)
        self._apply(technique, trainer)

    def report(self, technique: Technique, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the factor of the step that begins."""
        technique.report(trainer, pl_module, factor=self._factor)

    def advance(self, technique: Technique, trainer: Trainer) -> None:
        """Set the rate of the next step, if the batch that ends made one."""
        if technique.clock.attempted:
            self._apply(technique, trainer)

    def _apply(self, technique: Technique, trainer: Trainer) -> None:
        assert self._course is not None
        self._factor = self._course(technique.clock.position)
        rates = technique.conductor.rates
        rates.scale(trainer, technique.state_key, self._factor, among=self._among)

    def finish(self, technique: Technique, trainer: Trainer) -> None:
        """Say how far the rate has come, if the run was stopped before its schedule ended."""
        assert self._course is not None
        position, total, end = technique.clock.position, technique.clock.total, self._course.end
        if (total is None or position < total) and position < end and self._factor != self._course(end):
            told = f"the run ended at step {position}, with {self._factor:.3g} of the base rate"
            say(trainer, f"{technique.state_key}: {told}, before the schedule does at step {end}")

    def outcome(self, technique: Technique) -> dict[str, float | int | str]:
        """Return what was done in the run."""
        end = self._course.end if self._course else 0
        return {"steps": technique.clock.position, "end": end, "factor": self._factor}
