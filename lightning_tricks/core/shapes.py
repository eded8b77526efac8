"""The parts that schedules are made of.

A part that begins at step t0, ends at t1 and starts from the value a has, with s = t - t0, n = t1 - t0:

    constant     a
    linear       a + (to - a) s / n
    cosine       to + (a - to) (1 + cos(pi s / n)) / 2
    polynomial   to + (a - to) (1 - s / n) ** power
    exponential  a (to / a) ** (s / n)
    warmup       linear: a + (1 - a) (s + 1) / (n + 1), so that no step is spent at 0 and the peak
                 comes once, at s = n;  exponential: a (1 / a) ** (s / n)

The value ``to`` is reached at t1, that is after the part's last step, and held if nothing follows.
A part starts from the value where the one before it ended; the first one from 1 (warm-up: 0 if
linear, 0.01 if exponential), or from ``start`` if that is given.

References: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017,
https://arxiv.org/abs/1608.03983 (cosine); Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in
1 Hour", 2017, https://arxiv.org/abs/1706.02677 (warm-up).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from lightning_tricks.core import checks
from lightning_tricks.core.duration import as_duration, as_length
from lightning_tricks.core.schedule import Onward, Part, Span

__all__ = ["WARMUP_SHAPES", "as_start", "constant", "cosine", "exponential", "linear", "polynomial", "warmup"]

WARMUP_SHAPES = ("linear", "exponential")


@dataclass(frozen=True, repr=False)
class Constant(Part):
    """The same value throughout; without ``level``, the last value before it (1 at the start)."""

    still: ClassVar[bool] = True
    positional: ClassVar[str] = "level"

    level: float | None = None

    def first(self, before: float | None) -> float:
        if self.level is not None:
            return self.level
        return 1.0 if before is None else before

    def value(self, step: float, span: Span, first: float) -> float:
        return first

    def reach(self, first: float) -> tuple[float, ...]:
        return (first,)


@dataclass(frozen=True, repr=False, kw_only=True)
class _Decay(Onward):
    to: float

    def last(self, span: Span, first: float) -> float:
        return self.to

    def reach(self, first: float) -> tuple[float, ...]:
        return first, self.to

    def ends(self, first: float) -> tuple[float, ...]:
        return (self.to,)


@dataclass(frozen=True, repr=False)
class Linear(_Decay):
    """A straight line to ``to``."""

    def value(self, step: float, span: Span, first: float) -> float:
        return first + (self.to - first) * step / span.length


@dataclass(frozen=True, repr=False)
class Cosine(_Decay):
    """Half a cosine wave to ``to``."""

    def value(self, step: float, span: Span, first: float) -> float:
        return self.to + (first - self.to) * 0.5 * (1.0 + math.cos(math.pi * step / span.length))


@dataclass(frozen=True, repr=False, kw_only=True)
class Polynomial(_Decay):
    """A power of what is left, to ``to``."""

    power: float

    def value(self, step: float, span: Span, first: float) -> float:
        return self.to + (first - self.to) * float((1.0 - step / span.length) ** self.power)


@dataclass(frozen=True, repr=False)
class Exponential(_Decay):
    """A constant ratio from step to step, to ``to``."""

    def first(self, before: float | None) -> float:
        first = super().first(before)
        if first <= 0.0:
            raise ValueError(f"exponential(to={self.to!r}) must start above 0, got {first!r} before it")
        return first

    def value(self, step: float, span: Span, first: float) -> float:
        share = step / span.length
        return float(first ** (1.0 - share) * self.to**share)


@dataclass(frozen=True, repr=False)
class Warmup(Part):
    """A rise to 1."""

    positional: ClassVar[str] = "over"

    shape: str = "linear"
    start: float | None = None

    def first(self, before: float | None) -> float:
        if self.start is not None:
            return self.start
        return 0.0 if self.shape == "linear" else 0.01

    def last(self, span: Span, first: float) -> float:
        return 1.0

    def reach(self, first: float) -> tuple[float, ...]:
        return first, 1.0

    def ends(self, first: float) -> tuple[float, ...]:
        return (1.0,)

    def value(self, step: float, span: Span, first: float) -> float:
        if self.shape == "linear":
            return first + (1.0 - first) * (step + 1) / (span.length + 1)
        return float(first ** (1.0 - step / span.length))


def constant(level: float | None = None, *, over: int | str | None = None) -> Part:
    """Return the schedule that stays at ``level``.

    Args:
        level: The value; ``None`` for the last value before it.
        over: Length in steps, epochs or percent; ``None`` for the rest of the run.
    """
    return Constant(
        over=as_length("over", over), level=None if level is None else checks.finite("level", level)
    )


def linear(*, to: float, over: int | str | None = None, start: float | None = None) -> Part:
    """Return the schedule that goes to ``to`` in a straight line.

    Args:
        to: The value at the end.
        over: Length in steps, epochs or percent; ``None`` for the rest of the run.
        start: The value at the beginning; ``None`` for the last value before it.

    Example:
        >>> constant(2.0, over=10) >> linear(to=0.0, over="50%")
        constant(2.0, over=10) >> linear(over='50%', to=0.0)
    """
    return Linear(over=as_length("over", over), to=checks.finite("to", to), start=as_start(start))


def cosine(*, to: float = 0.0, over: int | str | None = None, start: float | None = None) -> Part:
    """Return the schedule that goes to ``to`` along half a cosine wave.

    Args:
        to: The value at the end.
        over: Length in steps, epochs or percent; ``None`` for the rest of the run.
        start: The value at the beginning; ``None`` for the last value before it.

    Example:
        >>> warmup("5%") >> cosine(to=0.1)
        warmup('5%') >> cosine(to=0.1)
    """
    return Cosine(over=as_length("over", over), to=checks.finite("to", to), start=as_start(start))


def polynomial(
    *, power: float, to: float = 0.0, over: int | str | None = None, start: float | None = None
) -> Part:
    """Return the schedule that goes to ``to`` as a power of the share of it that is left.

    Args:
        power: The power, above 0: with 1 a straight line, above it fast at first.
        to: The value at the end.
        over: Length in steps, epochs or percent; ``None`` for the rest of the run.
        start: The value at the beginning; ``None`` for the last value before it.
    """
    checks.in_range("power", power, 0.0, open_low=True, open_high=True)
    return Polynomial(
        over=as_length("over", over), power=power, to=checks.finite("to", to), start=as_start(start)
    )


def exponential(*, to: float, over: int | str | None = None, start: float | None = None) -> Part:
    """Return the schedule that goes to ``to`` by a constant ratio from step to step.

    Args:
        to: The value at the end, above 0.
        over: Length in steps, epochs or percent; ``None`` for the rest of the run.
        start: The value at the beginning, above 0; ``None`` for the last value before it.
    """
    checks.in_range("to", to, 0.0, open_low=True)
    if start is not None:
        checks.in_range("start", start, 0.0, open_low=True)
    return Exponential(over=as_length("over", over), to=checks.finite("to", to), start=as_start(start))


def warmup(over: int | str, *, shape: str = "linear", start: float | None = None) -> Part:
    """Return the schedule that rises to 1.

    Args:
        over: Length in steps, epochs or percent.
        shape: ``"linear"`` or ``"exponential"``.
        start: Where it rises from, below 1: 0 by default if linear, 0.01 (and above 0) if exponential.
    """
    checks.one_of("shape", shape, WARMUP_SHAPES)
    if start is not None:
        checks.in_range("start", start, 0.0, 1.0, open_low=shape == "exponential", open_high=True)
    return Warmup(over=as_duration("over", over), shape=shape, start=as_start(start))


def as_start(start: float | None) -> float | None:
    """Return ``start`` if it is ``None`` or finite; an error otherwise."""
    return None if start is None else checks.finite("start", start)
