"""Parts of schedules that are several phases in one, of which the end of the run decides when each begins.

A part of n steps that starts from the value a has, s steps after its beginning:

    stable_decay  a until the last d steps, then to + (a - to) (1 - sqrt(x)) or to + (a - to) (1 - x),
                  x the share of the d steps that has passed
    one_cycle     from 1 / div up to 1 in the first r steps, down to 1 / (div final_div) in the others,
                  along half a cosine wave each, or straight lines

References: Hu et al., "MiniCPM: Unveiling the Potential of Small Language Models with Scalable Training
Strategies", 2024, https://arxiv.org/abs/2404.06395, and Haegele et al., "Scaling Laws and Compute-Optimal
Training Beyond Fixed Training Durations", 2024, https://arxiv.org/abs/2405.18392 (warm-up, stable, decay);
Smith and Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates", 2018,
https://arxiv.org/abs/1708.07120.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from lightning_tricks.core import checks
from lightning_tricks.core.duration import Duration, as_duration, as_length
from lightning_tricks.core.schedule import Onward, Part, Span
from lightning_tricks.core.shapes import as_start

__all__ = ["one_cycle", "stable_decay"]


@dataclass(frozen=True, repr=False, kw_only=True)
class StableDecay(Onward):
    """The same value, and at the end a decay to ``to``."""

    positional: ClassVar[str] = "decay"

    decay: Duration
    shape: str = "sqrt"
    to: float = 0.0

    def last(self, span: Span, first: float) -> float:
        return self.to

    def value(self, step: float, span: Span, first: float) -> float:
        begin = max(span.begin, span.horizon.start(span.end, self.decay))
        if (position := span.begin + step) < begin:
            return first
        share = (position - begin) / (span.end - begin)
        return self.to + (first - self.to) * (1.0 - (math.sqrt(share) if self.shape == "sqrt" else share))

    def reach(self, first: float) -> tuple[float, ...]:
        return first, self.to

    def ends(self, first: float) -> tuple[float, ...]:
        return (self.to,)


@dataclass(frozen=True, repr=False, kw_only=True)
class OneCycle(Part):
    """A rise to 1 and a fall to next to nothing."""

    positional: ClassVar[str] = "rise"

    rise: Duration
    shape: str = "cosine"
    div: float = 25.0
    final_div: float = 1e4

    def first(self, before: float | None) -> float:
        return 1.0 / self.div

    def last(self, span: Span, first: float) -> float:
        return first / self.final_div

    def value(self, step: float, span: Span, first: float) -> float:
        rise = min(span.length, span.horizon.end(span.begin, self.rise) - span.begin)
        if step < rise:
            return self._between(first, 1.0, step / rise)
        return self._between(1.0, self.last(span, first), (step - rise) / (span.length - rise))

    def _between(self, one: float, other: float, share: float) -> float:
        if self.shape == "cosine":
            share = 0.5 * (1.0 - math.cos(math.pi * share))
        return one + (other - one) * share

    def reach(self, first: float) -> tuple[float, ...]:
        return first, 1.0, first / self.final_div

    def ends(self, first: float) -> tuple[float, ...]:
        return (first / self.final_div,)


def stable_decay(
    decay: int | str,
    *,
    shape: str = "sqrt",
    to: float = 0.0,
    over: int | str | None = None,
    start: float | None = None,
) -> Part:
    """Return the schedule that stays as it is, and goes to ``to`` at the end (behind a warm-up: WSD).

    Args:
        decay: Length of the decay in optimizer steps, epochs or percent of the run; one that is longer than
            the part takes all of it.
        shape: ``"sqrt"`` for 1 - sqrt(x), which falls fast at first, or ``"linear"``.
        to: The value at the end.
        over: Length of both together in steps, epochs or percent; ``None`` for the rest of the run.
        start: The value at the beginning; ``None`` for the last value before it.

    Example:
        >>> stable_decay("20%", to=0.1)
        stable_decay('20%', to=0.1)
    """
    return StableDecay(
        over=as_length("over", over),
        decay=as_duration("decay", decay),
        shape=checks.one_of("shape", shape, ("sqrt", "linear")),
        to=checks.finite("to", to),
        start=as_start(start),
    )


def one_cycle(
    rise: int | str = "30%",
    *,
    shape: str = "cosine",
    div: float = 25.0,
    final_div: float = 1e4,
    over: int | str | None = None,
) -> Part:
    """Return the schedule that rises to 1 and falls to next to nothing; it has a warm-up of its own.

    Args:
        rise: Length of the rise in optimizer steps, epochs or percent of the run.
        shape: ``"cosine"`` or ``"linear"``.
        div: What 1 is divided by to begin with, at least 1.
        final_div: What the beginning is divided by at the end, at least 1.
        over: Length of the whole in steps, epochs or percent; ``None`` for the rest of the run.

    Example:
        >>> one_cycle(div=10.0)
        one_cycle('30%', div=10.0)
    """
    return OneCycle(
        over=as_length("over", over),
        rise=as_duration("rise", rise),
        shape=checks.one_of("shape", shape, ("cosine", "linear")),
        div=checks.in_range("div", div, 1.0, open_high=True),
        final_div=checks.in_range("final_div", final_div, 1.0, open_high=True),
    )
