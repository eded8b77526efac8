"""When: lengths and moments of a run, in optimizer steps, epochs or a share of the run.

500            optimizer steps (never micro-batches); also written "500 steps"
"3 epochs"     epochs, turned into steps by the run's own table of epoch ends
"5%"           a share of the whole run
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from lightning_tricks.core import checks

__all__ = ["Duration", "Horizon", "as_duration", "as_length", "as_unit"]

_WRITTEN = re.compile(r"\s*(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*(%|epochs?|steps?)\s*")
_UNITS = {"%": "percent", "epoch": "epochs", "epochs": "epochs", "step": "steps", "steps": "steps"}


@dataclass(frozen=True)
class Duration:
    """A length of a run, or a moment in it.

    Attributes:
        amount: How many units, at least 0.
        unit: ``"steps"``, ``"epochs"`` or ``"percent"`` (of the whole run).
        name: What the user calls it, for errors.
    """

    amount: float
    unit: str
    name: str = field(default="a length", compare=False)

    def __str__(self) -> str:
        """Return the duration as a reader wants it, rounded."""
        return self._written(f"{self.amount:g}")

    def __repr__(self) -> str:
        """Return what builds an equal duration, in the form that a setting takes."""
        if self.unit == "steps":
            return str(int(self.amount))
        return repr(self._written(repr(self.amount).removesuffix(".0")))

    def _written(self, amount: str) -> str:
        if self.unit == "percent":
            return f"{amount}%"
        return f"{amount} {self.unit if self.amount != 1 else self.unit[:-1]}"


def as_duration(name: str, value: object) -> Duration:
    """Return ``value`` as a :class:`Duration`.

    Args:
        name: What the user calls the value.
        value: An int (optimizer steps), or a string such as ``"3 epochs"`` or ``"5%"``.

    Raises:
        TypeError: If ``value`` is of another type; a bare float is one, because 1.0 may mean one step
            or the whole run.
        ValueError: If it is negative, over 100 %, longer than any run, or not written as above.

    Example:
        >>> as_duration("warmup", "5%"), as_duration("warmup", 500), as_duration("at", "1 epoch")
        ('5%', 500, '1 epoch')
        >>> as_duration("warmup", 0.05)
        Traceback (most recent call last):
        TypeError: warmup must be a whole number of steps or text such as '3 epochs' or '5%', got 0.05
    """
    if isinstance(value, Duration):
        return value
    rule = "a whole number of steps or text such as '3 epochs' or '5%'"
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"{name} must be {rule}, got {value!r}")
    if isinstance(value, int):
        return Duration(checks.whole(name, value), "steps", name)
    found = _WRITTEN.fullmatch(value)
    if not found:
        raise ValueError(f"{name} must be {rule}, got {value!r}")
    amount, unit = float(found[1]), _UNITS[found[2]]
    if amount > (longest := 100 if unit == "percent" else sys.maxsize):
        raise ValueError(f"{name} must be at most {longest} {unit}, got {value!r}")
    if unit == "steps" and amount != int(amount):
        raise ValueError(f"{name} must be a whole number of steps, got {value!r}")
    return Duration(amount, unit, name)


def as_length(name: str, value: object) -> Duration | None:
    """Return ``value`` as a :class:`Duration`, or ``None`` if it is that."""
    return None if value is None else as_duration(name, value)


def as_unit(name: str, value: object) -> Duration:
    """Return ``value`` as a :class:`Duration` that time can be counted in.

    Raises:
        TypeError: As :func:`as_duration`.
        ValueError: Besides, if it is 0.
    """
    unit = as_duration(name, value)
    if not unit.amount:
        raise ValueError(f"{name} must be above 0, got {value!r}")
    return unit


@dataclass(frozen=True)
class Horizon:
    """How long a run is, as far as that is known before it starts.

    Attributes:
        total: Optimizer steps of the whole run; ``None`` if it has no end that can be counted.
        epoch_ends: Optimizer steps done at the end of each epoch, cumulative; epochs past the last are
            as long as the last. ``None`` if the length of an epoch is unknown.
        unknown: Why ``total`` or ``epoch_ends`` is ``None``, for errors.
    """

    total: int | None
    epoch_ends: tuple[int, ...] | None = None
    unknown: str = "the run's length is unknown"

    def saved(self) -> dict[str, Any]:
        """Return it as plain values."""
        ends = None if self.epoch_ends is None else list(self.epoch_ends)
        return {"total": self.total, "epoch_ends": ends, "unknown": self.unknown}

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Self:
        """Return what :meth:`saved` returned as plain values."""
        ends = state["epoch_ends"]
        return cls(state["total"], None if ends is None else tuple(ends), state["unknown"])

    def step_at(self, epochs: float) -> float:
        """Return the optimizer steps done after ``epochs`` epochs, a fraction of an epoch included."""
        ends = self._table()
        whole = math.floor(epochs)
        start = self._end_of(ends, whole)
        return start + (epochs - whole) * (self._end_of(ends, whole + 1) - start)

    def epoch_at(self, step: float) -> float:
        """Return the epochs done after ``step`` optimizer steps: the inverse of :meth:`step_at`."""
        ends = self._table()
        epoch = next((index for index, end in enumerate(ends) if step < end), len(ends))
        if epoch == len(ends) and self._length(ends):
            epoch += int((step - ends[-1]) // self._length(ends))
        start, end = self._end_of(ends, epoch), self._end_of(ends, epoch + 1)
        return epoch + ((step - start) / (end - start) if end > start else 0.0)

    def end(self, start: int, length: Duration) -> int:
        """Return the step at which something of ``length`` ends that begins at step ``start``.

        Raises:
            ValueError: If the length needs a run's length that is unknown; says why it is.
        """
        if length.unit != "epochs":
            return start + math.floor(self._steps(length) + 0.5)
        self._need_epochs(length)
        return math.floor(self.step_at(self.epoch_at(start) + length.amount) + 0.5)

    def start(self, end: int, length: Duration) -> int:
        """Return the step, at least 0, at which something of ``length`` begins that ends at ``end``.

        Raises:
            ValueError: As :meth:`end`.
        """
        if length.unit != "epochs":
            return max(0, end - self.end(0, length))
        self._need_epochs(length)
        return math.floor(self.step_at(max(0.0, self.epoch_at(end) - length.amount)) + 0.5)

    def elapsed(self, start: float, step: float, unit: Duration) -> float:
        """Return how many times ``unit``, which is above 0, has passed between two steps.

        Raises:
            ValueError: As :meth:`end`.
        """
        if unit.unit == "epochs":
            self._need_epochs(unit)
            passed, one = self.epoch_at(step) - self.epoch_at(start), unit.amount
        else:
            passed, one = step - start, self._steps(unit)
        # Units that are next to nothing are never counted beyond what an int can hold.
        return min(passed / max(one, sys.float_info.min), float(sys.maxsize))

    def _steps(self, length: Duration) -> float:
        if length.unit == "steps":
            return length.amount
        if self.total is None:
            raise ValueError(
                f"{length.name} must be in steps, or max_steps be set, since {self.unknown}, got "
                f"{str(length)!r}"
            )
        return length.amount / 100 * self.total

    def _need_epochs(self, length: Duration) -> None:
        if not self.epoch_ends:
            raise ValueError(f"{length.name} must be in steps, since {self.unknown}, got {str(length)!r}")

    def _table(self) -> tuple[int, ...]:
        if not self.epoch_ends:
            raise ValueError(f"epochs must have a known length, but {self.unknown}: give steps")
        return self.epoch_ends

    @staticmethod
    def _length(ends: tuple[int, ...]) -> int:
        return ends[-1] - (ends[-2] if len(ends) > 1 else 0)

    def _end_of(self, ends: tuple[int, ...], epochs: int) -> int:
        if epochs <= 0:
            return 0
        if epochs <= len(ends):
            return ends[epochs - 1]
        return ends[-1] + (epochs - len(ends)) * self._length(ends)
