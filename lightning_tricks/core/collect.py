"""Which sets of weights of a run are collected: policies that say when, and which one to drop."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lightning_tricks.core import checks

__all__ = ["BestK", "EverySteps", "LastEpochs", "SnapshotPolicy"]


class SnapshotPolicy(ABC):
    """Base of the policies that collect; frozen dataclasses, not final for the same reason as methods.

    Attributes:
        k: How many snapshots are kept, at least 1.
        monitored: Whether the policy needs a metric.
    """

    k: int
    monitored: ClassVar[bool] = False

    @abstractmethod
    def moments(self, *, position: int, epoch: int, validations: int) -> int:
        """Return how many moments for a snapshot have come so far in the run.

        Args:
            position: Optimizer steps done.
            epoch: Epochs done.
            validations: Validations done in which the metric was a number.
        """

    def count(self, position: int, epoch: int) -> int:
        """Return how many snapshots are kept at most at the end of a run of so many steps and epochs."""
        return min(self.k, self.moments(position=position, epoch=epoch, validations=sys.maxsize))

    def surplus(self, scores: Sequence[float]) -> int:
        """Return the index of the snapshot to drop, of one more than ``k``.

        Args:
            scores: Their metrics, oldest first; higher is better. NaN where the policy needs none.
        """
        return 0


@dataclass(frozen=True)
class LastEpochs(SnapshotPolicy):
    """Collect the weights at the end of each of the last ``k`` epochs.

    Example:
        >>> LastEpochs(5)
        LastEpochs(k=5)
    """

    k: int

    def __post_init__(self) -> None:
        checks.whole("k", self.k, 1)

    def moments(self, *, position: int, epoch: int, validations: int) -> int:
        return epoch


@dataclass(frozen=True)
class EverySteps(SnapshotPolicy):
    """Collect the weights after every ``n`` optimizer steps; keep the last ``k`` of them.

    Example:
        >>> EverySteps(100, k=10).moments(position=250, epoch=1, validations=1)
        2
    """

    n: int
    k: int

    def __post_init__(self) -> None:
        checks.whole("n", self.n, 1)
        checks.whole("k", self.k, 1)

    def moments(self, *, position: int, epoch: int, validations: int) -> int:
        return position // self.n


@dataclass(frozen=True)
class BestK(SnapshotPolicy):
    """Collect the weights of the ``k`` validations with the best metric; of equals the earlier stay.

    Example:
        >>> BestK(2).surplus([0.5, 0.3, 0.9])
        1
    """

    monitored: ClassVar[bool] = True

    k: int

    def __post_init__(self) -> None:
        checks.whole("k", self.k, 1)

    def moments(self, *, position: int, epoch: int, validations: int) -> int:
        return validations

    def surplus(self, scores: Sequence[float]) -> int:
        return min(range(len(scores)), key=lambda index: (scores[index], -index))
