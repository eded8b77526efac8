"""Which weights of a run are collected: the live ones, or those that techniques average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from lightning_tricks.fusion.collect import SnapshotPolicy
from lightning_tricks.fusion.methods import Model
from lightning_tricks.fusion.weights import tensors_of, with_average
from lightning_tricks.lifecycle.conductor import Member
from lightning_tricks.lifecycle.notice import callbacks_of

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

__all__ = ["Source"]


@dataclass(frozen=True)
class Source:
    """Gives the weights of a module.

    Attributes:
        pl_module: The module.
        averagers: The techniques whose averages stand in place of its live weights; none for live weights.
    """

    pl_module: LightningModule
    averagers: list[Member]

    @classmethod
    def of(cls, trainer: Trainer, pl_module: LightningModule, kind: str, collect: SnapshotPolicy) -> Self:
        """Return what gives ``"live"`` or ``"average"`` weights to ``collect``.

        Raises:
            ValueError: If there is no average, or validation measures other weights than are collected by
                its metric.
        """
        members = [callback for callback in callbacks_of(trainer) if isinstance(callback, Member)]
        averagers = [member for member in members if type(member).average is not Member.average]
        if kind == "average" and not averagers:
            raise ValueError("source must be 'live' where no technique averages weights, got 'average'")
        for member in averagers:
            wanted = "average" if member.evaluates_average else "live"
            if collect.monitored and kind != wanted:
                sees = "sees" if member.evaluates_average else "does not see"
                raise ValueError(
                    f"source must be {wanted!r} for {collect!r} where validation {sees} the average of "
                    f"{member.state_key}, got {kind!r}: write source={wanted!r}, or collect without a metric"
                )
        return cls(pl_module, averagers if kind == "average" else [])

    def weights(self) -> Model:
        """Return the tensors of now; called only where no technique has swapped the weights."""
        model: Model = tensors_of(self.pl_module)
        for member in self.averagers:
            model = with_average(model, member.average())
        return model
