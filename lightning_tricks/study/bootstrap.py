"""The bootstrap interval of the mean of paired differences.

    d_i = with_i - without_i,    i = 1 .. n
    interval = the alpha' / 2 and 1 - alpha' / 2 quantiles of the mean of n draws of d with replacement
    alpha' / 2 = Phi(-sqrt(n / (n - 1)) * t),    t = the 1 - alpha / 2 quantile of Student's t, n - 1 degrees

With few pairs the plain percentile interval (alpha' = alpha) is too narrow, for the draws scatter by
``(n - 1) / n`` of the variance, and as if that were known: for five normal differences it holds the true mean
in 85 of 100 cases instead of 95; the expanded one above, in 92.

Reference: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile interval);
Hesterberg, "What Teachers Should Know About the Bootstrap", 2014, https://arxiv.org/abs/1411.5279, section
5.2 (the expanded one).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

import torch

from lightning_tricks.core import checks
from lightning_tricks.core.extras import extra

__all__ = ["Estimate", "expanded_tail", "paired_effect"]

_ALL, _DRAWS = 7, 100_000  # up to 7 pairs, all n ** n resamples are fewer than a million


@dataclass(frozen=True)
class Estimate:
    """A mean of paired differences.

    Attributes:
        mean: In the unit of the values.
        low: Lower end of its interval; NaN with one pair, from which none can be told.
        high: Upper end.
        pairs: How many differences it is of.
    """

    mean: float
    low: float
    high: float
    pairs: int

    @property
    def is_clear(self) -> bool:
        """Whether 0 lies outside the interval."""
        return self.low > 0.0 or self.high < 0.0


def paired_effect(
    with_: Sequence[float], without: Sequence[float], *, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """Return the mean of ``with_ - without``, pair by pair, with its expanded bootstrap interval.

    Args:
        with_: A value of each pair.
        without: The others, in the same order.
        confidence: How often such an interval shall hold the true mean, in (0, 1).
        seed: Of the resamples, which are drawn where all of them are too many.

    Raises:
        ValueError: If the pairs are not whole, not finite, or none.

    Example:
        >>> paired_effect([3.0, 4.0], [2.0, 2.0])
        Estimate(mean=1.5, low=1.0, high=2.0, pairs=2)
    """
    checks.in_range("confidence", confidence, 0.0, 1.0, open_low=True, open_high=True)
    if not with_ or len(with_) != len(without):
        raise ValueError(f"with_ and without must be pairs, got {len(with_)} and {len(without)} values")
    found = [first - second for first, second in zip(with_, without, strict=True)]
    if not all(map(math.isfinite, found)):
        raise ValueError(f"with_ and without must be finite, got the differences {found}")
    if len(found) == 1:
        return Estimate(found[0], math.nan, math.nan, 1)
    tail = expanded_tail(len(found), confidence=confidence)
    differences = torch.tensor(found, dtype=torch.float64)
    ends = torch.tensor([tail, 1.0 - tail], dtype=torch.float64)
    # An interval of values that occur: between two of them none has been seen.
    means = _resampled(differences, seed=seed).sort().values
    low, high = means[(ends * (len(means) - 1)).round().long()].tolist()
    return Estimate(fmean(found), low, high, len(found))


def expanded_tail(pairs: int, *, confidence: float) -> float:
    """Return ``alpha' / 2`` of the formula above for at least two pairs.

    Example:
        >>> round(expanded_tail(5, confidence=0.95), 5)
        0.00095
        >>> round(expanded_tail(1000, confidence=0.95), 3)  # hardly wider than the plain one
        0.025
    """
    with extra("study"):
        from scipy.stats import t

    quantile = float(t.ppf(0.5 + confidence / 2, df=pairs - 1))
    return NormalDist().cdf(-math.sqrt(pairs / (pairs - 1)) * quantile)


def _resampled(differences: torch.Tensor, *, seed: int) -> torch.Tensor:
    """Return the means of all resamples, or of many of them."""
    count = len(differences)
    if count <= _ALL:
        return torch.cartesian_prod(*[differences] * count).mean(1)
    generator = torch.Generator().manual_seed(seed)
    return differences[torch.randint(count, (_DRAWS, count), generator=generator)].mean(1)
