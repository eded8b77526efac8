"""Parts of schedules that come back again and again.

A part that starts from the value a has, ``u`` cycles after its beginning:

    cosine_restarts  to + (a - to) peak_decay ** i (1 + cos(pi x)) / 2
                     in cycle i, of length mult ** i, of which the share x has passed
    cyclic           a + (to - a) (1 - |2 x - 1|) r,    x = u - floor(u)
                     r = 1 (triangular), 2 ** -floor(u) (triangular2), gamma ** u (exp_range)

``cyclic`` goes from a to ``to`` and back in each cycle. A run that ends with a whole cycle of
``cosine_restarts`` ends at ``to``: nothing rises again past the end.

References: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017,
https://arxiv.org/abs/1608.03983, equation 5; Smith, "Cyclical Learning Rates for Training Neural Networks",
2017, https://arxiv.org/abs/1506.01186.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from lightning_tricks.core import checks
from lightning_tricks.core.decays import whole_units
from lightning_tricks.core.duration import Duration, as_length, as_unit
from lightning_tricks.core.schedule import Onward, Part, Span
from lightning_tricks.core.shapes import as_start

__all__ = ["cosine_restarts", "cyclic"]

_FORMS = ("triangular", "triangular2", "exp_range")


@dataclass(frozen=True, repr=False, kw_only=True)
class _Cycles(Onward):
    endless: ClassVar[bool] = True
    positional: ClassVar[str] = "cycle"

    cycle: Duration
    to: float

    def reach(self, first: float) -> tuple[float, ...]:
        return first, self.to


@dataclass(frozen=True, repr=False, kw_only=True)
class CosineRestarts(_Cycles):
    """Half a cosine wave to ``to``, and again from the peak."""

    to: float = 0.0
    mult: int = 1
    peak_decay: float = 1.0

    def value(self, step: float, span: Span, first: float) -> float:
        index, share = self._cycle_at(span.units(step, self.cycle))
        return self._wave(index, share, first)

    def last(self, span: Span, first: float) -> float:
        index, share = self._cycle_at(span.units(span.length, self.cycle))
        whole = index and share < 1e-9
        return self.to if whole else self._wave(index, share, first)

    def _wave(self, index: int, share: float, first: float) -> float:
        height = (first - self.to) * self.peak_decay**index
        return self.to + height * 0.5 * (1.0 + math.cos(math.pi * share))

    def _cycle_at(self, units: float) -> tuple[int, float]:
        """Return which cycle it is, and the share of it that has passed."""
        if self.mult == 1:
            index = whole_units(units)
            return index, max(0.0, units - index)
        index, begin, length = 0, 0.0, 1.0
        while whole_units((units - begin) / length) >= 1:
            index, begin, length = index + 1, begin + length, length * self.mult
        return index, max(0.0, (units - begin) / length)


@dataclass(frozen=True, repr=False, kw_only=True)
class Cyclic(_Cycles):
    """A straight line to ``to`` and one back, again and again."""

    form: str = "triangular"
    gamma: float | None = None

    def value(self, step: float, span: Span, first: float) -> float:
        units = span.units(step, self.cycle)
        cycles = whole_units(units)
        way = max(0.0, 1.0 - abs(2.0 * (units - cycles) - 1.0))
        return first + (self.to - first) * way * self._height(units, cycles)

    def _height(self, units: float, cycles: int) -> float:
        if self.form == "triangular2":
            return float(0.5**cycles)
        return 1.0 if self.gamma is None else float(self.gamma**units)


def cosine_restarts(
    cycle: int | str,
    *,
    to: float = 0.0,
    mult: int = 1,
    peak_decay: float = 1.0,
    over: int | str | None = None,
    start: float | None = None,
) -> Part:
    """Return the schedule that goes to ``to`` along half a cosine wave, and again from the peak (SGDR).

    Args:
        cycle: Length of the first cycle in optimizer steps, epochs or percent of the run, above 0.
        to: The value at the end of each cycle.
        mult: How many times as long each cycle is as the one before it, at least 1.
        peak_decay: Share of the height above ``to`` that the next cycle begins with, in (0, 1].
        over: Length in steps, epochs or percent; ``None`` for the rest of the run.
        start: The value at the beginning; ``None`` for the last value before it.

    Example:
        >>> cosine_restarts("10 epochs", mult=2)
        cosine_restarts('10 epochs', mult=2)
    """
    return CosineRestarts(
        over=as_length("over", over),
        cycle=as_unit("cycle", cycle),
        to=checks.finite("to", to),
        mult=checks.whole("mult", mult, 1),
        peak_decay=checks.in_range("peak_decay", peak_decay, 0.0, 1.0, open_low=True),
        start=as_start(start),
    )


def cyclic(
    cycle: int | str,
    *,
    to: float,
    form: str = "triangular",
    gamma: float | None = None,
    over: int | str | None = None,
    start: float | None = None,
) -> Part:
    """Return the schedule that swings between the value before it and ``to`` in straight lines.

    Args:
        cycle: Length of a cycle, there and back, in optimizer steps, epochs or percent of the run, above 0.
        to: The value in the middle of each cycle (of the first, unless ``"triangular"``).
        form: ``"triangular"``; ``"triangular2"``, whose swings are halved from cycle to cycle; or
            ``"exp_range"``, whose swings fall by ``gamma`` per cycle, smoothly.
        gamma: For ``"exp_range"`` alone, in (0, 1].
        over: Length in steps, epochs or percent; ``None`` for the rest of the run.
        start: The value at the beginning; ``None`` for the last value before it.

    Example:
        >>> cyclic("4 epochs", start=0.1, to=1.0)
        cyclic('4 epochs', start=0.1, to=1.0)
    """
    checks.one_of("form", form, _FORMS)
    if (gamma is None) == (form == "exp_range"):
        raise ValueError(f"gamma must be given with form 'exp_range' alone, got {gamma!r} with {form!r}")
    if gamma is not None:
        checks.in_range("gamma", gamma, 0.0, 1.0, open_low=True)
    return Cyclic(
        over=as_length("over", over),
        cycle=as_unit("cycle", cycle),
        to=checks.finite("to", to),
        form=form,
        gamma=gamma,
        start=as_start(start),
    )
