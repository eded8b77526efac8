"""What one setting may be in a search: a range, or one of a list."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, final

from lightning_tricks.core import checks

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

__all__ = ["Choices", "Dimension", "Range", "dimension"]


def dimension(name: str, given: Any) -> Dimension:
    """Return what ``given`` describes: a list, or a mapping with ``low`` and ``high``.

    Raises:
        TypeError: If it is something else.
        ValueError: If it is not as it must be; ``name`` is told.

    Example:
        >>> dimension("width", {"low": 8, "high": 64, "log": True})
        Range(low=8, high=64, log=True, step=None)
    """
    if isinstance(given, Dimension):
        return given
    if isinstance(given, list | tuple):
        return Choices(tuple(given)).checked(name)
    if not isinstance(given, Mapping):
        raise TypeError(f"{name} must be a list of choices or have low and high, got {given!r:.80}")
    for key in given:
        checks.one_of(f"{name}'s keys", key, ("low", "high", "log", "step"))
    for key in ("low", "high"):
        if key not in given:
            raise ValueError(f"{name} must have low and high, got {dict(given)}")
    step = given.get("step")
    return Range(
        _number(f"{name}.low", given["low"]),
        _number(f"{name}.high", given["high"]),
        checks.flag(f"{name}.log", given.get("log", False)),
        None if step is None else _number(f"{name}.step", step),
    ).checked(name)


def _number(name: str, given: Any) -> int | float:
    if isinstance(given, str):  # YAML takes 1e-3 for text, and 1.0e-3 for a number
        try:
            given = float(given)
        except ValueError:
            raise TypeError(f"{name} must be a number, got {given!r}") from None
    real = checks.finite(name, given)
    return given if isinstance(given, int) else real


class Dimension(ABC):
    """What one setting may be."""

    @property
    @abstractmethod
    def size(self) -> int | None:
        """How many values there are; None without end."""

    @abstractmethod
    def values_of(self, name: str) -> list[Any]:
        """Return all values of the setting ``name``.

        Raises:
            ValueError: If they have no end.
        """

    @property
    @abstractmethod
    def ends(self) -> list[Any]:
        """Values that must be accepted for all others to be."""

    @abstractmethod
    def holds(self, value: Any) -> bool:
        """Whether ``value`` is one of its values."""

    @abstractmethod
    def plain(self) -> Any:
        """Return it as :func:`dimension` takes it."""

    @abstractmethod
    def distribution(self) -> BaseDistribution:
        """Return what Optuna draws from; of values that no storage can hold, their places in the list."""

    @abstractmethod
    def drawn(self, value: Any) -> Any:
        """Return the value for what Optuna has drawn."""

    @abstractmethod
    def shown(self, value: Any) -> Any:
        """Return a value as a storage can hold it and people can read it."""

    @abstractmethod
    def as_drawn(self, value: Any) -> Any:
        """Return what Optuna would have drawn for a value."""


@final
@dataclass(frozen=True)
class Choices(Dimension):
    """One of several values.

    Attributes:
        values: Different ones; of any kind.
    """

    values: tuple[Any, ...]

    def checked(self, name: str) -> Choices:
        """Return it, if its values are different ones."""
        if not self.values or any(_same(*pair) for pair in combinations(self.values, 2)):
            raise ValueError(f"{name} must have different choices, got {list(self.values)}")
        return self

    @property
    def size(self) -> int:
        return len(self.values)

    def values_of(self, name: str) -> list[Any]:
        return list(self.values)

    @property
    def ends(self) -> list[Any]:
        return list(self.values)

    def holds(self, value: Any) -> bool:
        return any(_same(value, each) for each in self.values)

    def plain(self) -> list[Any]:
        return list(self.values)

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution([self.shown(value) for value in self.values])

    def drawn(self, value: Any) -> Any:
        return next(each for each in self.values if _same(self.shown(each), value))

    def shown(self, value: Any) -> Any:
        is_plain = value is None or isinstance(value, bool | str | int | float)
        return value if is_plain else repr(value)

    def as_drawn(self, value: Any) -> Any:
        return self.shown(next(each for each in self.values if _same(each, value)))


def _same(first: Any, second: Any) -> bool:
    return bool(first == second) and isinstance(first, bool) == isinstance(second, bool)


@final
@dataclass(frozen=True)
class Range(Dimension):
    """Numbers from ``low`` to ``high``, both included; whole ones if all of its own are.

    Attributes:
        low: The least.
        high: The greatest.
        log: Whether equal ratios, and not equal differences, are equally likely.
        step: Between neighbours; None for all numbers, or all whole ones.
    """

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    def checked(self, name: str) -> Range:
        """Return it, if it is one."""
        if not self.low < self.high:
            raise ValueError(f"{name}.high must be above low, {self.low}, got {self.high}")
        if self.log:
            checks.in_range(f"{name}.low", self.low, 0.0, open_low=True)
            if self.step is not None:
                raise ValueError(f"{name}.step must be left out with log: true, got {self.step}")
        elif self.step is not None:
            checks.in_range(f"{name}.step", self.step, 0.0, open_low=True)
            steps = (self.high - self.low) / self.step
            if not math.isclose(steps, round(steps), abs_tol=1e-9):
                raise ValueError(
                    f"{name}.step must lead from low, {self.low}, to high, {self.high}, got {self.step}"
                )
        return self

    @property
    def is_whole(self) -> bool:
        """Whether it is of whole numbers."""
        return all(isinstance(each, int) for each in (self.low, self.high, self.step or 0))

    @property
    def size(self) -> int | None:
        step = self.step or (1 if self.is_whole else None)
        return None if step is None else 1 + round((self.high - self.low) / step)

    def values_of(self, name: str) -> list[Any]:
        if self.size is None:
            raise ValueError(
                f"{name} must be a list of choices, or have a step, to try all values, got {self.plain()}"
            )
        if self.size == 1 + self.high - self.low and self.is_whole:
            return list(range(int(self.low), int(self.high) + 1))
        assert self.step is not None
        return [round(self.low + index * self.step, 12) for index in range(self.size)]

    @property
    def ends(self) -> list[Any]:
        return [self.low, self.high]

    def holds(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if self.is_whole and not isinstance(value, int):
            return False
        if not self.low <= value <= self.high:
            return False
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return math.isclose(steps, round(steps), abs_tol=1e-9)

    def plain(self) -> dict[str, Any]:
        found = {"low": self.low, "high": self.high, "log": self.log, "step": self.step}
        return {
            key: each for key, each in found.items() if each not in (None, False) or key in ("low", "high")
        }

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.is_whole:
            return IntDistribution(int(self.low), int(self.high), self.log, int(self.step or 1))
        return FloatDistribution(self.low, self.high, self.log, self.step)

    def drawn(self, value: Any) -> Any:
        return value

    def shown(self, value: Any) -> Any:
        return value

    def as_drawn(self, value: Any) -> Any:
        return value
