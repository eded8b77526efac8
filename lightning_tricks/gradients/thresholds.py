"""Thresholds for the norm of gradients that follow the norms seen so far.

    percentile  c_t = the p-th percentile of n_0, ..., n_t, interpolated linearly

    z-score     z_t  = (n_t - mu) / sigma
                n*_t = mu + sigma z_max ** 2 / z_t    where z_t > z_max, else n_t
                mu         <- alpha mu + (1 - alpha) n*_t
                sigma ** 2 <- alpha sigma ** 2 + (1 - alpha) (n*_t - mu) ** 2

``n_t`` is the norm of the gradients at step ``t``; those that are not finite are left out. After the first
steps, the warm-up, mu and sigma are the mean and the standard deviation of their norms. Everything is done
on the device of the norm, and nothing is read back to the host.

References: Seetharaman et al., "AutoClip: Adaptive Gradient Clipping for Source Separation Networks", 2020,
https://arxiv.org/abs/2007.14469; Kumar et al., "ZClip: Adaptive Spike Mitigation for LLM Pre-Training", 2025,
https://arxiv.org/abs/2504.02507.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_tricks.core import checks

__all__ = ["AdaptiveThreshold", "Percentile", "ZScore"]

WINDOW = 10_000
"""How many norms a percentile is taken of at most."""

FLOOR = 0.01
"""The least standard deviation as a share of the mean, below which norms hardly differ at all."""

TINY = 1e-6
"""The least standard deviation in any case, as in the authors' code."""

LASTING = 100
"""Steps clipped in a row that are no spike any more; three times the memory of the default ``alpha``."""

State = dict[str, Tensor]


class AdaptiveThreshold(ABC):
    """Base of the policies; frozen dataclasses, which hold no state of a run themselves."""

    @abstractmethod
    def start(self, norm: Tensor) -> State:
        """Return the state before the first norm, which is ``norm``."""

    @abstractmethod
    def observe(self, state: State, norm: Tensor) -> tuple[State, Tensor]:
        """Return the state after one more norm, and the threshold for that one.

        Args:
            state: The state before.
            norm: A 0-d tensor; where it is not finite, the statistics stay as they are.

        Returns:
            The new state, on the device of ``norm``, and a 0-d tensor; infinity for no limit.
        """

    def knows(self, state: State) -> bool:
        """Return whether ``state`` is one of this kind of policy."""
        return state.keys() == self.start(torch.zeros(())).keys()

    def complaint(self, state: State) -> str | None:
        """Return what is wrong with the threshold, if anything; reads from the device."""
        return None


@dataclass(frozen=True)
class Percentile(AdaptiveThreshold):
    """AutoClip: the ``percent``-th percentile of the norms seen so far, that of this step included.

    Exact over the first 10,000 steps, then over the last 10,000. Costs a sort of them, about half a
    millisecond per step on a CPU when all are there, and 40 kB in a checkpoint. With the default, most steps
    are clipped, 9 of 10 where norms neither rise nor fall.

    Attributes:
        percent: In [0, 100].

    Example:
        >>> policy = Percentile(50)
        >>> state = policy.start(torch.tensor(4.0))
        >>> for norm in (4.0, 1.0, torch.inf, 3.0):
        ...     state, threshold = policy.observe(state, torch.tensor(norm))
        >>> threshold
        tensor(3.)
    """

    percent: float = 10.0

    def __post_init__(self) -> None:
        """Check the setting."""
        object.__setattr__(self, "percent", checks.in_range("percent", self.percent, 0.0, 100.0))

    def start(self, norm: Tensor) -> State:
        return {"norms": _wide(norm).new_empty(0)}

    @torch.no_grad()
    def observe(self, state: State, norm: Tensor) -> tuple[State, Tensor]:
        norm = _wide(norm).reshape(1)
        newest = norm.masked_fill(~torch.isfinite(norm), math.nan)  # a gap, which quantiles leave out
        norms = torch.cat([state["norms"].to(norm), newest])[-WINDOW:]
        return {"norms": norms}, norms.nanquantile(self.percent / 100).nan_to_num(math.inf)


@dataclass(frozen=True)
class ZScore(AdaptiveThreshold):
    """The norm at which a spike stands out from a moving mean by ``z_max`` standard deviations.

    A spike is cut to less than that, the more the higher it is, and what is left enters the statistics. The
    standard deviation is taken for at least a hundredth of the mean: after a lasting jump it shrinks, and
    would become 0. The threshold then hardly moves; after 100 steps clipped in a row there is a warning.

    Attributes:
        z_max: From how many standard deviations on, above 0.
        alpha: Share of the statistics that each step keeps, in [0, 1).
        warmup_steps: Steps at the start that are only watched, at least 1; nothing is clipped in them.

    Example:
        >>> policy = ZScore(warmup_steps=2)
        >>> state = policy.start(torch.tensor(1.0))
        >>> for norm in (1.0, 3.0, 12.0):
        ...     state, threshold = policy.observe(state, torch.tensor(norm))
        >>> threshold  # the mean is 2 and the deviation 1, so z is 10: 2 + 2.5 ** 2 / 10
        tensor(2.6250)
    """

    z_max: float = field(default=2.5, kw_only=True)
    alpha: float = field(default=0.97, kw_only=True)
    warmup_steps: int = field(default=25, kw_only=True)

    def __post_init__(self) -> None:
        """Check the settings."""
        checks.in_range("z_max", self.z_max, 0.0, open_low=True, open_high=True)
        checks.in_range("alpha", self.alpha, 0.0, 1.0, open_high=True)
        checks.whole("warmup_steps", self.warmup_steps, 1)

    def start(self, norm: Tensor) -> State:
        zero = torch.zeros_like(_wide(norm))
        return dict.fromkeys(("seen", "mean", "variance", "in_a_row", "threshold"), zero)

    @torch.no_grad()
    def observe(self, state: State, norm: Tensor) -> tuple[State, Tensor]:
        norm = _wide(norm)
        before = {name: value.to(norm) for name, value in state.items()}
        seen, mean, variance = before["seen"], before["mean"], before["variance"]
        warming, finite = seen < self.warmup_steps, torch.isfinite(norm)
        sigma = torch.maximum(variance.sqrt(), FLOOR * mean).clamp(min=TINY)
        z = (norm - mean) / sigma
        spike = (z > self.z_max) & ~warming
        threshold = mean + self.z_max * torch.where(spike, self.z_max / z, 1.0) * sigma
        kept = torch.where(spike, threshold, norm)
        # In the warm-up each norm weighs the same, so that these are their own mean and variance.
        share = torch.where(warming, 1 / (seen + 1), 1 - self.alpha)
        moved = mean + share * (kept - mean)
        square = (kept - moved) * (kept - torch.where(warming, mean, moved))
        after = {
            "seen": seen + 1,
            "mean": moved,
            "variance": variance + share * (square - variance),
            "in_a_row": (before["in_a_row"] + 1) * spike,
            "threshold": threshold.masked_fill(warming, math.inf),
        }
        counted = {name: torch.where(finite, value, before[name]) for name, value in after.items()}
        return counted, after["threshold"]

    def complaint(self, state: State) -> str | None:
        if state["in_a_row"] < LASTING:
            return None
        return (
            f"the norm has jumped for good: the last {LASTING} steps were all clipped, and the threshold "
            f"hardly moves any more from {state['threshold'].item():.3g}; lower the rate, or use Percentile, "
            "which follows"
        )


def _wide(norm: Tensor) -> Tensor:
    return norm.to(torch.promote_types(norm.dtype, torch.float32))
