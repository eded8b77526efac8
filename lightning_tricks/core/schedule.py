"""How much, over time: pure schedules that join by ``>>``, scale by ``*`` and print as written.

    warmup("5%") >> cosine(to=0.1)        5 % of the run up to 1, then down to 0.1 at its end
    10 * cosine(to=0.1)                   from 10 down to 1

The parts themselves and their formulas are in :mod:`lightning_tricks.core.shapes`.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lightning_tricks.core import checks
from lightning_tricks.core.duration import Duration, Horizon

__all__ = ["Course", "Part", "Schedule"]


class Schedule(ABC):
    """A value as a function of the optimizer step; pure, picklable, independent of any run."""

    @abstractmethod
    def parts(self) -> tuple[tuple[float, Part], ...]:
        """Return the parts in order, each with the factor that scales it."""

    def __rshift__(self, after: Schedule) -> Schedule:
        """Return this schedule, followed by ``after``, which starts from this one's last value."""
        return _Joined((self, after))

    def __rmul__(self, factor: float) -> Schedule:
        """Return this schedule with all its values multiplied by ``factor``."""
        return _Scaled(factor, self)

    def resolve(self, horizon: Horizon, *, kept: Sequence[int] = ()) -> Course:
        """Return the schedule as a function of the position in a run.

        Args:
            horizon: The run's length.
            kept: Ends of the first parts, in steps, that an earlier, interrupted run had fixed.

        Raises:
            ValueError: If a length needs a run's length that is unknown.
        """
        legs: list[_Leg] = []
        begin, value = 0, None
        for index, (factor, part) in enumerate(self.parts()):
            if index < len(kept):
                end = max(kept[index], begin)
            elif part.over is None:
                end = begin if part.endless else _whole_run(horizon, begin)
            else:
                end = horizon.end(begin, part.over)
            first = part.first(None if value is None else value / factor)
            legs.append(_Leg(begin, end, factor, first, part))
            begin, value = end, factor * part.last(first)
        return Course(tuple(legs))

    @property
    def varies(self) -> bool:
        """Whether the value changes at all, so that the run's length matters."""
        parts = self.parts()
        return len(parts) > 1 or not parts[0][1].endless

    def bounds(self) -> tuple[float, float]:
        """Return the least and the greatest value that the schedule takes or approaches."""
        values: list[float] = []
        value = None
        for factor, part in self.parts():
            first = part.first(None if value is None else value / factor)
            value = factor * part.last(first)
            values += [factor * first, value]
        return min(values), max(values)


def _whole_run(horizon: Horizon, begin: int) -> int:
    if horizon.total is None:
        raise ValueError(
            f"a schedule without a length ends with the run, but {horizon.unknown}: "
            "give its last part a length (over=...), or set max_steps"
        )
    return max(begin, horizon.total)


@dataclass(frozen=True)
class _Leg:
    begin: int
    end: int
    factor: float
    first: float
    part: Part


@dataclass(frozen=True)
class Course:
    """A schedule laid over a run: call it with the optimizer step, from 0.

    Example:
        >>> from lightning_tricks import cosine
        >>> course = cosine(to=0.0).resolve(Horizon(total=4))
        >>> [round(course(step), 3) for step in range(6)]
        [1.0, 0.854, 0.5, 0.146, 0.0, 0.0]
    """

    legs: tuple[_Leg, ...]

    @property
    def end(self) -> int:
        """The step from which on the value stays as it is."""
        return self.legs[-1].end

    def __call__(self, position: float) -> float:
        """Return the value at optimizer step ``position``; past the end the last value holds."""
        for leg in self.legs:
            if position < leg.end:
                step, length = position - leg.begin, leg.end - leg.begin
                return leg.factor * leg.part.value(step, length, leg.first)
        last = self.legs[-1]
        return last.factor * last.part.last(last.first)

    def kept(self, position: int) -> list[int]:
        """Return the ends that stay as they are if the run's length changes at ``position``.

        They are those of the parts that have begun, but for the schedule's last, which stretches.
        """
        return [leg.end for leg in self.legs[:-1] if leg.begin <= position]


@dataclass(frozen=True)
class Part(Schedule):
    """One piece of a schedule, between two values.

    Attributes:
        over: Its length; ``None`` for all that is left of the run.
    """

    endless: ClassVar[bool] = False  # whether it needs no end, because its value never changes
    positional: ClassVar[str] = ""  # the field that is written without its name

    over: Duration | None = None

    def parts(self) -> tuple[tuple[float, Part], ...]:
        """Return the part itself, unscaled."""
        return ((1.0, self),)

    @abstractmethod
    def first(self, before: float | None) -> float:
        """Return the value at the part's first step, given the last value ``before`` it."""

    @abstractmethod
    def last(self, first: float) -> float:
        """Return the value that the part reaches."""

    @abstractmethod
    def value(self, step: float, length: int, first: float) -> float:
        """Return the value ``step`` steps into a part of ``length`` steps."""

    def __repr__(self) -> str:
        """Return the part as it is written; settings at their default are left out."""
        shown = [
            repr(value) if field.name == self.positional else f"{field.name}={value!r}"
            for field in sorted(dataclasses.fields(self), key=lambda f: f.name != self.positional)
            if (value := getattr(self, field.name)) != field.default
        ]
        return f"{type(self).__name__.lower()}({', '.join(shown)})"


@dataclass(frozen=True)
class _Joined(Schedule):
    members: tuple[Schedule, ...]

    def __post_init__(self) -> None:
        for _, part in self.parts()[:-1]:
            if part.over is None:
                raise ValueError(f"only the last part of a schedule may lack a length, got {self!r}")
        self.bounds()  # raises where a part cannot go on from the one before it

    def parts(self) -> tuple[tuple[float, Part], ...]:
        return tuple(pair for member in self.members for pair in member.parts())

    def __repr__(self) -> str:
        return " >> ".join(map(repr, self.members))


@dataclass(frozen=True)
class _Scaled(Schedule):
    factor: float
    inner: Schedule

    def __post_init__(self) -> None:
        checks.number("the factor of a schedule", self.factor)
        for factor, _ in self.parts():
            if not factor or math.isinf(factor):
                raise ValueError(f"the factor of a schedule must be finite and not 0, got {factor!r}")

    def parts(self) -> tuple[tuple[float, Part], ...]:
        return tuple((self.factor * factor, part) for factor, part in self.inner.parts())

    def __repr__(self) -> str:
        inner = f"({self.inner!r})" if isinstance(self.inner, _Joined) else repr(self.inner)
        return f"{self.factor!r} * {inner}"
