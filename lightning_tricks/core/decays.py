"""Parts of schedules that fall at a rate per unit of time, with no value that they must reach.

A part that starts from the value a has, ``u`` units after its beginning:

    step               a gamma ** floor(u)
    multistep          a gamma ** (milestones passed)
    exponential_decay  a gamma ** u                        (exp(-k u) is gamma = exp(-k))
    inverse_time       a / (1 + k u),    a / (1 + k floor(u)) as a staircase
    inverse_sqrt       a / sqrt(1 + u)

A unit is a number of optimizer steps, of epochs (counted as the run's accumulation makes them long) or a
percentage of the run. Without a length they go on to the end of the run, and hold the value there.

References: Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017,
https://arxiv.org/abs/1706.02677 (milestones after a warm-up); Vaswani et al., "Attention Is All You Need",
2017, https://arxiv.org/abs/1706.03762, equation 3 (inverse square root).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from lightning_tricks.core import checks
from lightning_tricks.core.duration import Duration, as_length, as_unit
from lightning_tricks.core.schedule import Onward, Part, Span
from lightning_tricks.core.shapes import as_start

__all__ = ["exponential_decay", "inverse_sqrt", "inverse_time", "multistep", "step", "whole_units"]


def whole_units(units: float) -> int:
    """Return the whole units in ``units``; one that lacks only a rounding error is whole.

    Example:
        >>> whole_units(1.6 - 0.6), whole_units(0.3 / 0.1), whole_units(2.99)
        (1, 3, 2)
    """
    return math.floor(units + 1e-9)


@dataclass(frozen=True, repr=False, kw_only=True)
class _Rate(Onward):
    """A start value times a share that falls with the units that have passed."""

    endless: ClassVar[bool] = True

    @abstractmethod
    def share(self, units: float) -> float:
        """Return the share of the start value that is left after ``units``, which may be infinite."""

    @property
    @abstractmethod
    def unit(self) -> Duration | None:
        """What is counted; ``None`` for the length of all that comes before the part."""

    def value(self, step: float, span: Span, first: float) -> float:
        units = step / span.begin if self.unit is None else span.units(step, self.unit)
        # Parts end with a whole step, which may be half a step late.
        return first * self.share(min(units, self._most()))

    def reach(self, first: float) -> tuple[float, ...]:
        return first, first * self.share(self._most())

    def _most(self) -> float:
        """Return how many units pass at most, as far as that is known without a run."""
        length = self.over
        if length is None and self.unit is not None and self.unit.unit == "percent":
            length = Duration(100.0, "percent")
        if length is None or self.unit is None or length.unit != self.unit.unit:
            return math.inf
        return length.amount / self.unit.amount


@dataclass(frozen=True, repr=False, kw_only=True)
class _Every(_Rate):
    every: Duration

    @property
    def unit(self) -> Duration:
        return self.every


@dataclass(frozen=True, repr=False, kw_only=True)
class Step(_Every):
    """A factor each time a unit has passed."""

    gamma: float = 0.1

    def share(self, units: float) -> float:
        return float(self.gamma ** (units if math.isinf(units) else whole_units(units)))


@dataclass(frozen=True, repr=False, kw_only=True)
class ExponentialDecay(_Every):
    """A factor per unit, smoothly."""

    gamma: float

    def share(self, units: float) -> float:
        return float(self.gamma**units)


@dataclass(frozen=True, repr=False, kw_only=True)
class InverseTime(_Every):
    """One over the time that has passed."""

    k: float
    staircase: bool = False

    def share(self, units: float) -> float:
        if self.staircase and not math.isinf(units):
            units = whole_units(units)
        return 1.0 / (1.0 + self.k * units)


@dataclass(frozen=True, repr=False)
class InverseSqrt(_Rate):
    """One over the square root of the time that has passed."""

    positional: ClassVar[str] = "timescale"

    timescale: Duration | None = None

    @property
    def unit(self) -> Duration | None:
        return self.timescale

    def check(self, span: Span) -> None:
        if self.timescale is None and not span.begin:
            raise ValueError("timescale must be given where no warm-up comes before inverse_sqrt(), got None")

    def share(self, units: float) -> float:
        return 1.0 / math.sqrt(1.0 + units)


@dataclass(frozen=True, repr=False, kw_only=True)
class Multistep(Onward):
    """A factor at each of some moments of the run."""

    endless: ClassVar[bool] = True
    positional: ClassVar[str] = "milestones"

    milestones: tuple[Duration, ...]
    gamma: float = 0.1

    def check(self, span: Span) -> None:
        for milestone in self.milestones:
            if (at := span.horizon.end(0, milestone)) < span.begin:
                raise ValueError(
                    f"milestones must not come before their part, which begins at step {span.begin}, "
                    f"got {str(milestone)!r}, which is step {at}: milestones are moments of the run"
                )

    def value(self, step: float, span: Span, first: float) -> float:
        position = span.begin + step
        passed = sum(span.horizon.end(0, milestone) <= position for milestone in self.milestones)
        return float(first * self.gamma**passed)

    def reach(self, first: float) -> tuple[float, ...]:
        return first, first * self.gamma ** len(self.milestones)

    def moments(self, span: Span) -> Iterable[tuple[int, str]]:
        return ((span.horizon.end(0, each), f"milestone {each!r}") for each in self.milestones)


def step(
    *, every: int | str, gamma: float = 0.1, over: int | str | None = None, start: float | None = None
) -> Part:
    """Return the schedule that is multiplied by ``gamma`` each time ``every`` has passed.

    Args:
        every: Optimizer steps, epochs or percent of the run, above 0, counted from the part's beginning.
        gamma: The factor, in (0, 1].
        over: Length in steps, epochs or percent; ``None`` for the rest of the run.
        start: The value at the beginning; ``None`` for the last value before it.

    Example:
        >>> step(every="30 epochs")
        step(every='30 epochs')
    """
    return Step(
        over=as_length("over", over),
        every=as_unit("every", every),
        gamma=_gamma(gamma),
        start=as_start(start),
    )


def multistep(
    milestones: Sequence[int | str],
    *,
    gamma: float = 0.1,
    over: int | str | None = None,
    start: float | None = None,
) -> Part:
    """Return the schedule that is multiplied by ``gamma`` at each of ``milestones``.

    Args:
        milestones: Moments of the run in steps, epochs or percent, counted from the beginning of the run and
            not of the part, in order; none before the part begins.
        gamma: The factor, in (0, 1].
        over: Length in steps, epochs or percent; ``None`` for the rest of the run.
        start: The value at the beginning; ``None`` for the last value before it.

    Example:
        >>> multistep(["10 epochs", "20 epochs", "30 epochs"])
        multistep(['10 epochs', '20 epochs', '30 epochs'])
    """
    if not isinstance(milestones, list | tuple) or not milestones:
        raise TypeError(f"milestones must be a list of moments of the run, got {milestones!r}")
    moments = tuple(as_unit(f"milestones[{index}]", each) for index, each in enumerate(milestones))
    for one, next_one in pairwise(moments):
        if one.unit == next_one.unit and one.amount >= next_one.amount:
            raise ValueError(f"milestones must come one after the other, got {milestones!r}")
    return Multistep(
        over=as_length("over", over), milestones=moments, gamma=_gamma(gamma), start=as_start(start)
    )


def exponential_decay(
    *, gamma: float, every: int | str, over: int | str | None = None, start: float | None = None
) -> Part:
    """Return the schedule that falls smoothly by the factor ``gamma`` in each ``every``.

    Args:
        gamma: The factor, in (0, 1].
        every: Optimizer steps, epochs or percent of the run, above 0.
        over: Length in steps, epochs or percent; ``None`` for the rest of the run.
        start: The value at the beginning; ``None`` for the last value before it.

    Example:
        >>> exponential_decay(gamma=0.9, every="1 epoch")
        exponential_decay(every='1 epoch', gamma=0.9)
    """
    return ExponentialDecay(
        over=as_length("over", over),
        every=as_unit("every", every),
        gamma=_gamma(gamma),
        start=as_start(start),
    )


def inverse_time(
    *,
    k: float,
    every: int | str,
    staircase: bool = False,
    over: int | str | None = None,
    start: float | None = None,
) -> Part:
    """Return the schedule that falls as one over 1 + ``k`` times the time, in units of ``every``.

    Args:
        k: How fast, above 0: after 1 / ``k`` units half is left.
        every: Optimizer steps, epochs or percent of the run, above 0.
        staircase: Whether only whole units count.
        over: Length in steps, epochs or percent; ``None`` for the rest of the run.
        start: The value at the beginning; ``None`` for the last value before it.
    """
    checks.in_range("k", k, 0.0, open_low=True, open_high=True)
    return InverseTime(
        over=as_length("over", over),
        every=as_unit("every", every),
        k=k,
        staircase=checks.flag("staircase", staircase),
        start=as_start(start),
    )


def inverse_sqrt(
    timescale: int | str | None = None, *, over: int | str | None = None, start: float | None = None
) -> Part:
    """Return the schedule that falls as one over the square root of 1 + the time, in ``timescale``.

    Args:
        timescale: Optimizer steps, epochs or percent of the run, above 0; ``None`` for the length of what
            comes before, the warm-up.
        over: Length in steps, epochs or percent; ``None`` for the rest of the run.
        start: The value at the beginning; ``None`` for the last value before it.
    """
    scale = None if timescale is None else as_unit("timescale", timescale)
    return InverseSqrt(over=as_length("over", over), timescale=scale, start=as_start(start))


def _gamma(gamma: float) -> float:
    return checks.in_range("gamma", gamma, 0.0, 1.0, open_low=True)
