"""Which weights of a run are collected: the live ones, or those that techniques average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from lightning_tricks.core.collect import SnapshotPolicy
from lightning_tricks.core.tensors import Model
from lightning_tricks.lifecycle.member import Member
from lightning_tricks.lifecycle.notice import callbacks_of
from lightning_tricks.lifecycle.weights import Weights, with_average

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

__all__ = ["Source"]


@dataclass(frozen=True)
class Source:
    """Gives the weights that are collected.

    Attributes:
        live: The live ones.
        averagers: The techniques whose averages stand in place of its live weights; none for live weights.
    """

    live: Weights
    averagers: list[Member]

    @classmethod
    def of(cls, trainer: Trainer, live: Weights, kind: str, collect: SnapshotPolicy) -> Self:
        """Return what gives ``"live"`` or ``"average"`` weights to ``collect``.

        Raises:
            ValueError: If there is no average, or validation measures other weights than are collected by
                its metric.
        """
        members = [callback for callback in callbacks_of(trainer) if isinstance(callback, Member)]
        averagers = [member for member in members if member.evaluates_average]
        if kind == "average" and not averagers:
            raise ValueError(
                "source must be 'live' where no technique averages weights for evaluation, got 'average'"
            )
        if averagers and collect.monitored and kind == "live":
            raise ValueError(
                f"source must be 'average' for {collect!r} where validation sees the average of "
                f"{averagers[0].state_key}, got 'live': write source='average', or collect without a metric"
            )
        return cls(live, averagers if kind == "average" else [])

    def whole(self) -> Model:
        """Return the whole tensors of now, in the first process; to be called by all together.

        Called only where no technique has swapped the weights.
        """
        model: Model = self.live.tensors()
        for member in self.averagers:
            model = with_average(model, member.average())
        return self.live.gather(model)
