"""How many stages are due: by the moments that have come, or by how often a metric has stalled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_tricks.core.duration import Duration
from lightning_tricks.lifecycle.notice import warn
from lightning_tricks.lifecycle.watching import check_validation, validated
from lightning_tricks.network.openings import Trigger, opening_moments

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from lightning_tricks.lifecycle.clock import Clock
    from lightning_tricks.lifecycle.technique import Technique

__all__ = ["Agenda"]


class Agenda:
    """The openings of a run, of which some are past.

    Attributes:
        due: How many stages are to be open; never fewer than before.
    """

    def __init__(self, at: int | str | Sequence[int | str] | Trigger, stages: int) -> None:
        """Take ``at``, the setting, for so many ``stages``.

        Raises:
            TypeError: If an entry is no duration.
            ValueError: As :func:`~lightning_tricks.network.openings.opening_moments`.
        """
        self.due: int = 1
        self._stages = stages
        self._trigger = at if isinstance(at, Trigger) else None
        self._moments: tuple[Duration, ...] = ()
        self._watch: dict[str, float] = {}
        if isinstance(at, Trigger):
            self._watch = at.start()
        else:
            self._moments = opening_moments(at, stages - 1)

    def written(self) -> list[str]:
        """Return when each stage opens, in words."""
        later = [f"{self._trigger.monitor} stalls"] * (self._stages - 1) if self._trigger else self._moments
        return ["start", *map(str, later)]

    def begin(self, technique: Technique, trainer: Trainer) -> None:
        """Look at the start of a run what is due, and warn of what never will be.

        Raises:
            ValueError: If a moment cannot be reckoned, or there is no validation to watch a metric of.
        """
        if self._trigger:
            check_validation(trainer, "at", self._trigger.monitor)
        for stage, moment in enumerate(self._moments, 2):
            technique.clock.reached(moment)  # says now, and not in some later epoch, what cannot be reckoned
            if late := technique.clock.too_late(moment, for_steps=True):
                warn(trainer, f"{technique.state_key}, stage {stage}: {late}")
        self.look(technique.clock)

    def look(self, clock: Clock) -> None:
        """Look what is due by now."""
        for moment in self._moments[self.due - 1 :]:
            if not clock.reached(moment):
                break
            self.due += 1

    def observe(self, technique: Technique, trainer: Trainer, opened: int) -> None:
        """Look at the metric of the validation that just ended, with ``opened`` stages open."""
        trigger = self._trigger
        if trigger is None or self.due == self._stages:
            return
        value = validated(technique, trainer, trigger.monitor)
        if value is None or opened < self.due:  # one has yet to act
            return
        self._watch = trigger.observe(self._watch, value)
        # One decision for all processes, or their trainable parameters would differ.
        if trainer.strategy.reduce_boolean_decision(trigger.fires(self._watch), all=False):
            self._watch = trigger.rest(self._watch)
            self.due += 1

    def saved(self) -> dict[str, Any]:
        """Return how many are due, and how long the metric has stalled."""
        return {"opened": self.due, "watch": dict(self._watch)}

    def restore(self, watch: dict[str, float]) -> None:
        """Take back how long the metric has stalled, if one was watched in the same way."""
        if watch.keys() == self._watch.keys():
            self._watch = dict(watch)
