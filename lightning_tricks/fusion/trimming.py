"""Which entries of a tensor are largest in magnitude: exactly so many of them, without sorting.

Floats of one sign are in the order of their bits, so the bits of the smallest that is in are found digit by
digit, each of 16 bits, by counting: two passes over the entries for float32, the second over few of them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Cut", "largest", "share"]

DIGIT = 16
"""Bits that are counted at once."""


@dataclass(frozen=True)
class Cut:
    """Where a choice of the largest entries of a tensor ends.

    Attributes:
        magnitude: Of the smallest entry that is in.
        end: How many entries from the first may be in with that magnitude; all before are, if they have it.
    """

    magnitude: float
    end: int

    def holds(self, values: Tensor, start: int = 0) -> Tensor:
        """Return which of ``values``, the entries of a row from ``start``, are in.

        Example:
            >>> largest(torch.tensor([1.0, -3.0, 2.0, -2.0]), 2).holds(torch.tensor([2.0, -2.0]), 2)
            tensor([ True, False])
        """
        magnitudes = values.abs()
        held = magnitudes >= self.magnitude
        border = max(self.end - start, 0)
        if border < len(values):
            held[border:] = magnitudes[border:] > self.magnitude
        return held


NONE = Cut(float("inf"), 0)


def share(part: float, count: int) -> int:
    """Return how many of ``count`` entries are the share ``part``: rounded down, but of some at least one.

    Example:
        >>> share(0.5, 7), share(0.5, 1), share(0.0, 7)
        (3, 1, 0)
    """
    return max(int(part * count), 1 if part > 0 and count > 0 else 0)


@torch.no_grad()
def largest(values: Tensor, count: int) -> Cut:
    """Return the cut of the ``count`` largest magnitudes; of equal ones, those that come first are in.

    Args:
        values: A row of float32 or float64, finite.
        count: From 0 to its length.
    """
    if count == 0:
        return NONE
    if count == len(values):
        return Cut(0.0, sys.maxsize)
    whole = torch.int64 if values.dtype == torch.float64 else torch.int32
    bits = values.abs().view(whole)
    rest, wanted, chosen = bits, count, 0  # of ``rest`` so many are in; all begin with the digits chosen
    for shift in range(torch.iinfo(whole).bits - DIGIT, -1, -DIGIT):
        digits = (rest >> shift).bitwise_and_((1 << DIGIT) - 1)
        # How many have at least this digit, from the largest digit down.
        reached = torch.bincount(digits, minlength=1 << DIGIT).flip(0).cumsum(0)
        place = int(torch.searchsorted(reached, wanted))
        digit = (1 << DIGIT) - 1 - place
        wanted -= int(reached[place - 1]) if place else 0
        chosen = chosen << DIGIT | digit
        rest = rest.masked_select(digits == digit)
    magnitude = float(torch.tensor(chosen, dtype=whole).view(values.dtype))
    if wanted == len(rest):
        return Cut(magnitude, sys.maxsize)
    return Cut(magnitude, int((bits == chosen).nonzero()[wanted - 1]) + 1)
