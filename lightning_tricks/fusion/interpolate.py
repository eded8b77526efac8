"""The straight line between two models.

    theta = alpha theta_1 + (1 - alpha) theta_2,    0 <= alpha <= 1

``alpha`` is the share of the first model.

Reference: Wortsman et al., "Robust fine-tuning of zero-shot models", 2021,
https://arxiv.org/abs/2109.01903 (there alpha is the share of the second model, the fine-tuned one).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_tricks.core import checks
from lightning_tricks.core.tensors import Model
from lightning_tricks.fusion.average import Average
from lightning_tricks.fusion.methods import TensorwiseMethod

__all__ = ["Interpolate", "interpolate"]


def interpolate(first: Model, second: Model, *, alpha: float) -> dict[str, Tensor]:
    """Return the point between two models at which ``first`` has the share ``alpha``.

    Args:
        first: Returned for ``alpha`` 1, but for integer and boolean tensors, which ``second`` gives.
        second: Of the same names, shapes and types; returned for ``alpha`` 0.
        alpha: In [0, 1].

    Raises:
        ValueError: If the models do not fit each other, or ``alpha`` lies outside.

    Example:
        >>> from torch import tensor
        >>> interpolate({"w": tensor([4.0])}, {"w": tensor([0.0])}, alpha=0.75)
        {'w': tensor([3.])}
    """
    return Interpolate(alpha).fuse([first, second])


@dataclass(frozen=True)
class Interpolate(TensorwiseMethod):
    """Fuse two models by linear interpolation (:func:`interpolate`).

    Args:
        alpha: Share of the first model, in [0, 1].

    Example:
        >>> Interpolate(0.25)
        Interpolate(alpha=0.25)
    """

    alpha: float

    def __post_init__(self) -> None:
        checks.in_range("alpha", self.alpha, 0.0, 1.0)

    @property
    def count(self) -> int:
        return 2

    def combine(self, name: str, tensors: list[Tensor]) -> Tensor:
        return Average((self.alpha, 1 - self.alpha)).combine(name, tensors)
