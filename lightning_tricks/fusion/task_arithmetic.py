"""Task arithmetic: what fine-tunings changed is added to the model that they began with.

    theta = theta_0 + scale sum_i w_i delta_i,    delta_i = theta_i - theta_0

Reference: Ilharco et al., "Editing models with task arithmetic", 2023, https://arxiv.org/abs/2212.04089.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_tricks.core import checks
from lightning_tricks.core.tensors import Model
from lightning_tricks.fusion.methods import TensorwiseMethod, check_base
from lightning_tricks.fusion.pieces import combination

__all__ = ["TaskArithmetic", "TaskVectors", "task_arithmetic"]


def task_arithmetic(
    base: Model, models: Sequence[Model], *, scale: float = 1.0, weights: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """Return ``base`` with the scaled sum of what changed in ``models``.

    Args:
        base: What the models began with.
        models: At least one; of the names, shapes and types of ``base``.
        scale: What the sum is multiplied by. The paper tunes it on held-out data; 0.3 to 0.5 is usual for
            several tasks.
        weights: One factor for each of ``models``; ``None`` for 1. A negative one makes the model forget.

    Raises:
        ValueError: If the models do not fit one another, or the weights do not fit them.

    Example:
        >>> from torch import tensor
        >>> task_arithmetic({"w": tensor([1.0])}, [{"w": tensor([2.0])}, {"w": tensor([5.0])}], scale=0.5)
        {'w': tensor([3.5000])}
    """
    return TaskArithmetic(scale=scale, weights=_tuple(weights)).fuse([base, *models])


def _tuple(weights: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if weights is None else tuple(weights)


@dataclass(frozen=True, kw_only=True)
class TaskVectors(TensorwiseMethod):
    """Base of the policies that fuse what models changed of the one that they began with, the base.

    Args:
        scale: What the fused change is multiplied by, before it is added to the base.
        weights: One factor for each model but the base; ``None`` for 1.
        base: File of the base; ``None`` if it is the first of the models.
    """

    scale: float = 1.0
    weights: tuple[float, ...] | None = None
    base: str | None = None

    def __post_init__(self) -> None:
        checks.finite("scale", self.scale)
        if self.weights is not None:
            if not isinstance(self.weights, list | tuple) or not self.weights:
                raise TypeError(f"weights must be a list of numbers, got {self.weights!r}")
            factors = [checks.finite("every entry of weights", weight) for weight in self.weights]
            object.__setattr__(self, "weights", tuple(factors))
        check_base(self.base)

    @property
    def count(self) -> int | None:
        return None if self.weights is None else len(self.weights) + 1

    @property
    def least(self) -> int:
        return 2

    def factors(self, tensors: Sequence[Tensor]) -> list[float]:
        """Return the weights of ``tensors``, those of the models without the base."""
        return [1.0] * len(tensors) if self.weights is None else [*self.weights]


@dataclass(frozen=True, kw_only=True)
class TaskArithmetic(TaskVectors):
    """Fuse by adding what models changed to the one that they began with (:func:`task_arithmetic`).

    Variances of BatchNorm that come out below 0 are refused by ``fuse``: average them (``Layerwise``).

    Args:
        scale: What the sum is multiplied by.
        weights: One factor for each model but the base; ``None`` for 1.
        base: File of the model that they began with; ``None`` if that is the first of the models.

    Example:
        >>> TaskArithmetic(scale=0.4, base="pretrained.ckpt")
        TaskArithmetic(scale=0.4, weights=None, base='pretrained.ckpt')
    """

    def combine(self, name: str, tensors: list[Tensor]) -> Tensor:
        factors = [self.scale * factor for factor in self.factors(tensors[1:])]
        return combination(tensors, [1.0 - sum(factors), *factors])
