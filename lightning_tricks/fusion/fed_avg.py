"""Federated averaging: models that were trained on data of their own count by how many samples they saw.

    theta = sum_i n_i / n theta_i,    n = sum_i n_i

Reference: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", 2017,
https://arxiv.org/abs/1602.05629.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_tricks.core import checks
from lightning_tricks.core.tensors import Model
from lightning_tricks.fusion.methods import TensorwiseMethod
from lightning_tricks.fusion.pieces import combination

__all__ = ["FedAvg", "checked_samples", "fed_avg", "shares_of"]


def fed_avg(models: Sequence[Model], *, samples: Sequence[float]) -> dict[str, Tensor]:
    """Return the mean of ``models`` weighted by their samples.

    Args:
        models: At least one; of equal names, shapes and types.
        samples: How many each was trained on; not below 0, and not all 0.

    Raises:
        ValueError: If the models do not fit one another, or the samples do not fit them.

    Example:
        >>> from torch import tensor
        >>> fed_avg([{"w": tensor([0.0])}, {"w": tensor([4.0])}], samples=[300, 100])
        {'w': tensor([1.])}
    """
    return FedAvg(tuple(samples)).fuse(models)


def shares_of(samples: Sequence[float]) -> list[float]:
    """Return the share of each in all samples.

    Example:
        >>> shares_of((300, 100))
        [0.75, 0.25]
    """
    total = sum(samples)
    return [count / total for count in samples]


def checked_samples(samples: object) -> tuple[float, ...]:
    """Return ``samples`` as a tuple of numbers, none below 0 and not all 0.

    Raises:
        TypeError: If they are no list or tuple of numbers.
        ValueError: If they are other numbers.
    """
    if not isinstance(samples, list | tuple) or not samples:
        raise TypeError(f"samples must be a list of numbers, got {samples!r}")
    for count in samples:
        checks.in_range("every entry of samples", count, 0.0, 1e300)
    if sum(samples) == 0:
        raise ValueError(f"samples must not all be 0, got {samples!r}")
    return tuple(samples)


@dataclass(frozen=True)
class FedAvg(TensorwiseMethod):
    """Fuse by the mean weighted by samples (:func:`fed_avg`).

    Args:
        samples: How many samples each model was trained on; not below 0, and not all 0.

    Example:
        >>> FedAvg((300, 100))
        FedAvg(samples=(300, 100))
    """

    samples: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", checked_samples(self.samples))

    @property
    def count(self) -> int:
        return len(self.samples)

    def combine(self, name: str, tensors: list[Tensor]) -> Tensor:
        return combination(tensors, shares_of(self.samples))
