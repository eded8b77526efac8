"""Which entries of a tensor are largest in magnitude: exactly so many of them, without sorting.

Floats of one sign are in the order of their bits. So the first 16 bits of the smallest that is in are found
by counting, and the rest among the few entries that begin with them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Cut", "largest", "share"]

DIGIT = 16
"""Bits that are counted at once."""

FEW = 20_000
"""So many are searched faster than counted."""

PART = 1 << 18
"""Entries that are counted at once: they stay in the cache."""


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
    whole = torch.iinfo(torch.int64 if values.dtype == torch.float64 else torch.int32)
    # Of ``rest``, which all begin with the same digits, so many are in.
    rest, wanted, shift = values.view(getattr(torch, whole.dtype)), count, whole.bits
    while len(rest) > FEW and shift > 0:
        shift -= DIGIT
        parts = torch.split(rest, PART)
        # How many have at least this digit, from the largest digit down.
        counts = [torch.bincount(_digits(part, shift), minlength=1 << DIGIT) for part in parts]
        reached = torch.stack(counts).sum(0).flip(0).cumsum(0)
        place = int(torch.searchsorted(reached, wanted))
        wanted -= int(reached[place - 1]) if place else 0
        digit = (1 << DIGIT) - 1 - place
        rest = torch.cat([part.masked_select(_digits(part, shift) == digit) for part in parts])
    rest = rest & whole.max
    smallest = rest.kthvalue(len(rest) - wanted + 1).values if shift > 0 else rest[0]
    wanted -= int((rest > smallest).sum())
    magnitude = float(smallest.view(values.dtype))
    if wanted == int((rest == smallest).sum()):
        return Cut(magnitude, sys.maxsize)
    return Cut(magnitude, _place(values, magnitude, wanted) + 1)


def _digits(bits: Tensor, shift: int) -> Tensor:
    """Return 16 bits of each number from ``shift`` on, without the sign, which is the first of all."""
    first = shift + DIGIT == torch.iinfo(bits.dtype).bits
    return (bits >> shift).bitwise_and_((1 << DIGIT - first) - 1)


def _place(values: Tensor, magnitude: float, number: int) -> int:
    """Return where the entry of this number, from 1, with this magnitude stands."""
    for index, part in enumerate(torch.split(values, PART)):
        found = (part.abs() == magnitude).nonzero()
        if number <= len(found):
            return index * PART + int(found[number - 1])
        number -= len(found)
    raise AssertionError(f"fewer than {number} entries of magnitude {magnitude}")
