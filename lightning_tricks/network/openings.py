"""When stages open: at moments of the run, or each time a monitored metric stalls.

A metric is observed once per validation; whether it stalls is counted in
:mod:`~lightning_tricks.core.stalling`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from lightning_tricks.core.duration import Duration, as_duration
from lightning_tricks.core.stalling import check_stalling, observed, unseen

__all__ = ["Plateau", "Trigger", "opening_moments"]


def opening_moments(at: int | str | Sequence[int | str], later: int) -> tuple[Duration, ...]:
    """Return when each of the ``later`` stages opens that are not open from the start.

    Args:
        at: One duration, the distance between two openings; or one moment for each of these stages.
        later: How many stages there are beside the first.

    Raises:
        TypeError: If an entry is no duration.
        ValueError: If the number of moments differs from ``later``, they go back in time, or the last
            lies beyond the run.

    Example:
        >>> opening_moments("1 epoch", 3)
        ('1 epoch', '2 epochs', '3 epochs')
    """
    if isinstance(at, list | tuple):
        if len(at) != later:
            raise ValueError(
                f"at must hold a moment for each stage but the first, {later} in all, got {at!r}"
            )
        moments = tuple(as_duration(f"at[{index}]", moment) for index, moment in enumerate(at))
        for first, second in pairwise(moments):
            if first.unit == second.unit and first.amount > second.amount:
                raise ValueError(f"the moments of at must not go back, got {at!r}")
        return moments
    distance = as_duration("at", at)
    if distance.unit == "percent" and distance.amount * later > 100.0:
        raise ValueError(f"at must leave room for {later} openings within 100%, got {at!r}")
    return tuple(Duration(distance.amount * k, distance.unit, "at") for k in range(1, later + 1))


class Trigger(ABC):
    """Decides by a metric that the next stage opens; holds no state of a run itself.

    Attributes:
        monitor: Name of the metric, as it is logged.
    """

    monitor: str

    @abstractmethod
    def start(self) -> dict[str, float]:
        """Return the state before the first value."""

    @abstractmethod
    def observe(self, state: dict[str, float], value: float) -> dict[str, float]:
        """Return the state after one more ``value``."""

    @abstractmethod
    def fires(self, state: dict[str, float]) -> bool:
        """Return whether it is time."""

    @abstractmethod
    def rest(self, state: dict[str, float]) -> dict[str, float]:
        """Return the state after a stage was opened."""


@dataclass(frozen=True)
class Plateau(Trigger):
    """Fires when a metric has not improved for some validations; then it counts anew.

    The best value is kept when it fires: the next stage has to beat it.

    Attributes:
        monitor: Name of the metric, as the module or a callback logs it in validation. One that is missing is
            an error at the first validation, and at the sanity check if it is nearly the name of one that is
            logged; else a warning there, because a few batches may not give it.
        patience: Validations in a row without improvement after which it fires, at least 1.
        min_delta: By how much a value must beat the best, at least 0; just as good is no improvement.
        mode: ``"min"`` where lower is better, else ``"max"``.

    Example:
        >>> plateau = Plateau("val_loss", patience=2)
        >>> state = plateau.start()
        >>> for value in (0.5, 0.6, 0.5):
        ...     state = plateau.observe(state, value)
        >>> state, plateau.fires(state)
        ({'best': 0.5, 'bad': 2}, True)
    """

    monitor: str
    patience: int = field(default=2, kw_only=True)
    min_delta: float = field(default=0.0, kw_only=True)
    mode: Literal["min", "max"] = field(default="min", kw_only=True)

    def __post_init__(self) -> None:
        """Check the settings."""
        check_stalling(self.monitor, self.patience, self.min_delta, self.mode)

    def start(self) -> dict[str, float]:
        return unseen(self.mode)

    def observe(self, state: dict[str, float], value: float) -> dict[str, float]:
        return observed(state, value, min_delta=self.min_delta, mode=self.mode)

    def fires(self, state: dict[str, float]) -> bool:
        return state["bad"] >= self.patience

    def rest(self, state: dict[str, float]) -> dict[str, float]:
        return {"best": state["best"], "bad": 0}
