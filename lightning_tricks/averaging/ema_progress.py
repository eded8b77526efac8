"""How far an exponential moving average has come: its counts, and what it has yet to take in."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_tricks.averaging.ema_decay import joint_share

__all__ = ["Progress"]


@dataclass
class Progress:
    """Counts of an average, and the steps that it has not moved by.

    Attributes:
        updates: Real steps since it began; a tensor if only the device knows.
        seen: The same, with the steps counted of which only the device knows.
        share: Joint share of the real steps since the last that moved it.
        samples: Those of the batches since the last step, the batch at hand left out.
        switches: How many times the live weights were to have jumped to it by now.
    """

    updates: int | Tensor = 0
    seen: int = 0
    share: float | Tensor = 0.0
    samples: int = 0
    switches: int = 0

    def count(self, share: float | Tensor, applied: bool | Tensor) -> None:
        """Take note of a step by which the live weights have ``share``, if it was ``applied``."""
        self.share = joint_share(self.share, share * applied)
        self.updates = self.updates + applied
        self.seen += 1

    def take(self) -> float | Tensor:
        """Return the joint share of the steps since the last call."""
        share, self.share = self.share, 0.0
        return share
