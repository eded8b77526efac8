"""Means that one bad model cannot carry away: the median of each entry, and the mean without extremes.

    median        theta = the middle of theta_1, ..., theta_n, or the mean of the middle two
    trimmed mean  theta = the mean of what is left without the k smallest and the k largest

Both entry by entry; k is the share ``trim`` of n, rounded down, but at least 1.

Reference: Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", 2018,
https://arxiv.org/abs/1803.01498.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_tricks.core import checks
from lightning_tricks.core.tensors import Model
from lightning_tricks.fusion.methods import TensorwiseMethod
from lightning_tricks.fusion.pieces import piecewise
from lightning_tricks.fusion.trimming import share

__all__ = ["Median", "TrimmedMean", "median", "middle", "trimmed_mean"]


def median(models: Sequence[Model]) -> dict[str, Tensor]:
    """Return the median of ``models``, entry by entry; complex numbers by real and imaginary part.

    Args:
        models: At least one; of equal names, shapes and types. Their order does not matter.

    Raises:
        ValueError: If the models do not fit one another.

    Example:
        >>> from torch import tensor
        >>> median([{"w": tensor([1.0, 5.0])}, {"w": tensor([2.0, 4.0])}, {"w": tensor([1e9, 6.0])}])
        {'w': tensor([2., 5.])}
    """
    return Median().fuse(models)


def trimmed_mean(models: Sequence[Model], *, trim: float = 0.1) -> dict[str, Tensor]:
    """Return the mean of ``models`` without the extremes of each entry.

    Args:
        models: At least one, with ``trim`` above 0 three; of equal names, shapes and types. Their order does
            not matter.
        trim: Share of the models that is left out at either end, in [0, 0.5); above 0 at least one model.

    Raises:
        ValueError: If the models do not fit one another.

    Example:
        >>> from torch import tensor
        >>> trimmed_mean([{"w": tensor(value)} for value in (0.0, 2.0, 3.0, 1e9)])
        {'w': tensor(2.5000)}
    """
    return TrimmedMean(trim).fuse(models)


def middle(tensors: list[Tensor], cut: int) -> Tensor:
    """Return the mean of each entry over ``tensors`` without its ``cut`` smallest and largest values.

    Args:
        tensors: More than 2 ``cut``; floating or complex, of one shape and type.
        cut: At least 0.
    """
    left = slice(cut, len(tensors) - cut)

    def combine(start: int, parts: list[Tensor]) -> Tensor:
        chosen = _sorted(parts)[left] if cut else parts
        return torch.stack(chosen).sum(0).div_(len(chosen))

    return piecewise(tensors, combine)


def _sorted(parts: list[Tensor]) -> list[Tensor]:
    """Return ``parts`` with the values of each entry in order, by exchanging neighbours of all entries."""
    parts = [*parts]
    for last in range(len(parts) - 1, 0, -1):
        for index in range(last):
            one, other = parts[index], parts[index + 1]
            parts[index], parts[index + 1] = torch.minimum(one, other), torch.maximum(one, other)
    return parts


@dataclass(frozen=True)
class Median(TensorwiseMethod):
    """Fuse by the median of each entry (:func:`median`), which models that are far off do not move.

    Example:
        >>> Median()
        Median()
    """

    def combine(self, name: str, tensors: list[Tensor]) -> Tensor:
        return middle(tensors, (len(tensors) - 1) // 2)


@dataclass(frozen=True)
class TrimmedMean(TensorwiseMethod):
    """Fuse by the mean without the extremes of each entry (:func:`trimmed_mean`).

    Args:
        trim: Share of the models that is left out at either end, in [0, 0.5); above 0 at least one model.

    Example:
        >>> TrimmedMean(0.2)
        TrimmedMean(trim=0.2)
    """

    trim: float = 0.1

    def __post_init__(self) -> None:
        checks.in_range("trim", self.trim, 0.0, 0.5, open_high=True)

    @property
    def least(self) -> int:
        return 3 if self.trim > 0 else 1

    def combine(self, name: str, tensors: list[Tensor]) -> Tensor:
        return middle(tensors, share(self.trim, len(tensors)))
