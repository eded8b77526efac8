"""Previews: what the snapshots so far would make is validated beside the weights that train."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_tricks.fusion.former import Former
from lightning_tricks.lifecycle.side_by_side import log_again

if TYPE_CHECKING:
    from lightning_tricks.core.duration import Duration
    from lightning_tricks.fusion.candidates import Candidates
    from lightning_tricks.lifecycle.clock import Clock

__all__ = ["Previews"]


@dataclass
class Previews:
    """When one is due.

    Attributes:
        clock: Of the run.
        every: The distance between two; ``None`` for none at all.
        done: How many of that distance had passed at the last.
    """

    clock: Clock
    every: Duration | None
    done: int = sys.maxsize

    def begin(self) -> None:
        """Start at this point of the run, or at the last preview before it.

        Raises:
            ValueError: If the distance needs a length of the run that is unknown.
        """
        # By another distance, or from the start, more may have been counted than have passed.
        self.done = min(self.done, self._passed())

    @property
    def due(self) -> bool:
        """Whether the distance has passed again."""
        return self._passed() > self.done

    def _passed(self) -> int:
        return 0 if self.every is None else self.clock.passed(self.every)

    def show(self, tried: Candidates, prefix: str) -> None:
        """Fuse, validate that and log its metrics under ``prefix``; in ``on_validation_end``."""
        trainer, module = tried.weights.trainer, tried.weights.module
        former = Former(tried.weights)  # live or not: what another technique has put in for this validation
        try:
            tried.settle(tried.fused())
            log_again(trainer, module, prefix)
        finally:
            former.put_back()
        self.done = self._passed()
