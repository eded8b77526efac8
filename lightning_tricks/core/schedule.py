"""How much, over time: pure schedules that join by ``>>``, scale by ``*`` and print as written.

    warmup("5%") >> cosine(to=0.1)        5 % of the run up to 1, then down to 0.1 at its end
    10 * cosine(to=0.1)                   from 10 down to 1

The parts themselves and their formulas are in :mod:`~lightning_tricks.core.shapes`,
:mod:`~lightning_tricks.core.decays`, :mod:`~lightning_tricks.core.cycles` and
:mod:`~lightning_tricks.core.phases`.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lightning_tricks.core import checks
from lightning_tricks.core.duration import Duration, Horizon

__all__ = ["Course", "Onward", "Part", "Schedule", "Span"]


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

    def resolve(self, horizon: Horizon, *, kept: Sequence[Horizon] = (), name: str = "a value") -> Course:
        """Return the schedule as a function of the position in a run.

        Args:
            horizon: The run's length.
            kept: That of an earlier, interrupted run, for each of the first parts that it had fixed.
            name: What follows the schedule, for errors.

        Raises:
            ValueError: If a length needs a run's length that is unknown, or a part cannot lie where it would.
        """
        legs: list[_Leg] = []
        begin, value = 0, None
        for index, (factor, part) in enumerate(self.parts()):
            laid = kept[index] if index < len(kept) else horizon
            span = Span(begin, max(begin, part.end(laid, begin)), laid)
            try:
                part.check(span)
            except ValueError as error:
                raise ValueError(f"the schedule of {name} must fit the run, got {self!r}: {error}") from None
            first = part.first(None if value is None else value / factor)
            legs.append(_Leg(span, factor, first, part))
            begin, value = span.end, legs[-1].last
        return Course(tuple(legs))

    @property
    def varies(self) -> bool:
        """Whether the value changes at all, so that the run's length matters."""
        parts = self.parts()
        return len(parts) > 1 or not parts[0][1].still

    def bounds(self) -> tuple[float, float]:
        """Return the least and the greatest value that the schedule takes or approaches in any run."""
        values: list[float] = []
        before: Sequence[float | None] = (None,)
        for factor, part in self.parts():
            firsts = [part.first(None if value is None else value / factor) for value in before]
            values += [factor * value for first in firsts for value in part.reach(first)]
            ends = [factor * value for first in firsts for value in part.ends(first)]
            before = (min(ends), max(ends))
        return min(values), max(values)


@dataclass(frozen=True)
class Span:
    """Where a part lies in a run.

    Attributes:
        begin: Its first step.
        end: The step after its last.
        horizon: The run's length, as it was when the part was laid.
    """

    begin: int
    end: int
    horizon: Horizon

    @property
    def length(self) -> int:
        """How many steps it has."""
        return self.end - self.begin

    def units(self, step: float, unit: Duration) -> float:
        """Return how many ``unit`` have passed ``step`` steps into the part."""
        return self.horizon.elapsed(self.begin, self.begin + step, unit)


@dataclass(frozen=True)
class _Leg:
    span: Span
    factor: float
    first: float
    part: Part

    @property
    def last(self) -> float:
        return self.factor * self.part.last(self.span, self.first)

    def value(self, position: float) -> float:
        return self.factor * self.part.value(position - self.span.begin, self.span, self.first)


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
        return self.legs[-1].span.end

    def __call__(self, position: float) -> float:
        """Return the value at optimizer step ``position``; past the end the last value holds."""
        for leg in self.legs:
            if position < leg.span.end:
                return leg.value(position)
        return self.legs[-1].last

    def kept(self, position: int) -> list[Horizon]:
        """Return what :meth:`resolve` is to keep if the run's length changes at ``position``.

        It is that of the parts that have begun, but for the schedule's last, which stretches.
        """
        return [leg.span.horizon for leg in self.legs[:-1] if leg.span.begin <= position]


@dataclass(frozen=True)
class Part(Schedule):
    """One piece of a schedule, between two values.

    Attributes:
        over: Its length; ``None`` for all that is left of the run.
    """

    still: ClassVar[bool] = False  # whether its value never changes
    endless: ClassVar[bool] = False  # whether it goes on where a run has no end that is known
    positional: ClassVar[str] = ""  # the field that is written without its name

    over: Duration | None = None

    def parts(self) -> tuple[tuple[float, Part], ...]:
        """Return the part itself, unscaled."""
        return ((1.0, self),)

    def end(self, horizon: Horizon, begin: int) -> int:
        """Return the step at which the part ends if it begins at ``begin``."""
        if self.over is not None:
            return horizon.end(begin, self.over)
        if self.still:
            return begin
        if horizon.total is None and self.endless:
            return sys.maxsize
        if horizon.total is None:
            raise ValueError(
                f"a schedule without a length ends with the run, but {horizon.unknown}: "
                "give its last part a length (over=...), or set max_steps"
            )
        return horizon.total

    def check(self, span: Span) -> None:
        """Accept where it lies.

        Raises:
            ValueError: If it cannot lie there.
        """

    @abstractmethod
    def first(self, before: float | None) -> float:
        """Return the value at the part's first step, given the last value ``before`` it."""

    def last(self, span: Span, first: float) -> float:
        """Return the value that the part reaches at its end, and holds if nothing follows."""
        return self.value(span.length, span, first)

    @abstractmethod
    def value(self, step: float, span: Span, first: float) -> float:
        """Return the value ``step`` steps into the part."""

    @abstractmethod
    def reach(self, first: float) -> tuple[float, ...]:
        """Return values between which all lie that the part may take in any run."""

    def ends(self, first: float) -> tuple[float, ...]:
        """Return values between which the one lies that it reaches in any run."""
        return self.reach(first)

    def moments(self, span: Span) -> Iterable[tuple[int, str]]:
        """Return the steps at which it changes by itself, such as milestones, each with its name."""
        return ()

    def __repr__(self) -> str:
        """Return the part as it is written; settings at their default are left out."""
        shown = [
            _written(value) if field.name == self.positional else f"{field.name}={_written(value)}"
            for field in sorted(dataclasses.fields(self), key=lambda f: f.name != self.positional)
            if (value := getattr(self, field.name)) != field.default
        ]
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).lower()
        return f"{name}({', '.join(shown)})"


def _written(value: object) -> str:
    return repr(list(value) if isinstance(value, tuple) else value)


@dataclass(frozen=True, repr=False, kw_only=True)
class Onward(Part):
    """A part that goes on from where the one before it ended; the first one from 1.

    Attributes:
        start: The value to begin with instead.
    """

    start: float | None = None

    def first(self, before: float | None) -> float:
        if self.start is not None:
            return self.start
        return 1.0 if before is None else before


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

    def __rmul__(self, factor: float) -> Schedule:
        """Return the schedule with both factors as one."""
        return _Scaled(checks.number("the factor of a schedule", factor) * self.factor, self.inner)

    def __repr__(self) -> str:
        inner = f"({self.inner!r})" if isinstance(self.inner, _Joined) else repr(self.inner)
        return f"{self.factor!r} * {inner}"
