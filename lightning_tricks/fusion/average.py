"""The weighted average of models.

    theta = sum_i w_i theta_i,    sum_i w_i = 1

Reference: Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy
without increasing inference time", 2022, https://arxiv.org/abs/2203.05482, "uniform soup".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_tricks.core import checks
from lightning_tricks.core.tensors import Model
from lightning_tricks.fusion.methods import TensorwiseMethod
from lightning_tricks.fusion.pieces import combination

__all__ = ["Average", "average", "check_weights"]


def average(models: Sequence[Model], *, weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Return the weighted average of ``models``, computed in double precision and rounded once.

    So the order of the models does not matter, and a model averaged with itself comes back to the bit.

    Args:
        models: At least one; of equal names, shapes and types.
        weights: One number for each, which together make 1; ``None`` for equal ones.

    Raises:
        ValueError: If the models do not fit one another, or the weights do not fit them.

    Example:
        >>> from torch import tensor
        >>> two = [{"w": tensor([1.0, 0.0])}, {"w": tensor([3.0, 8.0])}]
        >>> average(two, weights=[0.75, 0.25])
        {'w': tensor([1.5000, 2.0000])}
    """
    return Average(None if weights is None else tuple(check_weights(weights))).fuse(models)


def check_weights(weights: Sequence[float]) -> list[float]:
    """Return ``weights`` as floats that together make 1, within 1e-6.

    Raises:
        TypeError: If they are no list or tuple of numbers.
        ValueError: If they do not make 1.
    """
    if not isinstance(weights, list | tuple):
        raise TypeError(f"weights must be a list of numbers, got {weights!r}")
    shares = [checks.number("every entry of weights", weight) for weight in weights]
    if not math.isclose(sum(shares), 1.0, abs_tol=1e-6):
        raise ValueError(f"weights must be one for each model and make 1 together, got {weights!r}")
    return shares


@dataclass(frozen=True)
class Average(TensorwiseMethod):
    """Fuse by the weighted average (:func:`average`).

    Args:
        weights: The share of each model in the order of the models, together 1; ``None`` for equal shares
            of any number of models.

    Example:
        >>> Average((0.25, 0.75))
        Average(weights=(0.25, 0.75))
    """

    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.weights is not None:
            object.__setattr__(self, "weights", tuple(check_weights(self.weights)))

    @property
    def count(self) -> int | None:
        return None if self.weights is None else len(self.weights)

    def combine(self, name: str, tensors: list[Tensor]) -> Tensor:
        if self.weights is None:
            # Not thirds of each: their sum in double precision is exact, so that half-way cases round well.
            return combination(tensors, [1.0] * len(tensors), divisor=len(tensors))
        return combination(tensors, self.weights)
