"""Prune, then fuse: each model keeps its largest weights, and the mean is over those that kept a weight.

    m_i   = 1 where |theta_i| is among the largest density of its tensor and not 0, else 0
    theta = sum_i m_i theta_i / sum_i m_i, and 0 where no model kept the weight

So a weight that one model alone kept is not made smaller by the zeros of the others. The union of the masks
is denser than each, 75 % of two independent halves; with a target, the result is pruned once more.

References: Han et al., "Learning both Weights and Connections for Efficient Neural Networks", 2015,
https://arxiv.org/abs/1506.02626, for pruning by magnitude.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_tricks.core import checks
from lightning_tricks.core.tensors import Model
from lightning_tricks.fusion.average import Average
from lightning_tricks.fusion.methods import TensorwiseMethod, floating
from lightning_tricks.fusion.pieces import piecewise, reals, wide
from lightning_tricks.fusion.trimming import Cut, largest, share

__all__ = ["Pruned", "pruned", "sparsity"]


def pruned(
    models: Sequence[Model], *, density: float = 0.5, target: float | None = None
) -> dict[str, Tensor]:
    """Return the mean of ``models`` after pruning, over those that kept a weight (:func:`sparsity` tells).

    Tensors of at least two dimensions are pruned; biases, gains and statistics are averaged.

    Args:
        models: At least one; of equal names, shapes and types. Their order does not matter. Tensors that are
            equal in all stay as they are.
        density: Share of each tensor's entries that is kept, in (0, 1]: rounded down, but at least one entry;
            of equal ones those that come first in the tensor.
        target: Likewise for the result, which is pruned again if it is denser; ``None`` to leave it.

    Raises:
        ValueError: If the models do not fit one another.

    Example:
        >>> first, second = torch.tensor([[4.0, 1.0, 3.0, 0.5]]), torch.tensor([[2.0, 1.0, 0.0, 9.0]])
        >>> fused = pruned([{"w": first}, {"w": second}])
        >>> fused["w"], sparsity(fused)
        (tensor([[3., 0., 3., 9.]]), 0.25)
    """
    return Pruned(density, target=target).fuse(models)


def sparsity(model: Model) -> float:
    """Return the share of zeros in the tensors of at least two dimensions, which are those that are pruned.

    Example:
        >>> sparsity({"weight": torch.tensor([[0.0, 1.0]]), "bias": torch.zeros(2)})
        0.5
    """
    weights = [model[name] for name in floating(model) if model[name].ndim > 1]
    total = sum(weight.numel() for weight in weights)
    return 1 - sum(int(weight.count_nonzero()) for weight in weights) / total if total else 0.0


def _cut(row: Tensor, density: float) -> Cut:
    return largest(row, share(density, len(row)))


def _mean(rows: list[Tensor], cuts: list[Cut]) -> Tensor:
    """Return the mean of ``rows`` over what their cuts hold and is not 0."""

    def mean(start: int, parts: list[Tensor]) -> Tensor:
        total, kept = torch.zeros_like(parts[0]), torch.zeros_like(parts[0])
        for part, cut in zip(parts, cuts, strict=True):
            total.add_(part.mul_(cut.holds(part, start)))
            kept.add_(part != 0)
        return total.div_(kept.clamp_(min=1))

    return piecewise(rows, mean)


@dataclass(frozen=True)
class Pruned(TensorwiseMethod):
    """Fuse by the mean of what is left of each model after pruning (:func:`pruned`).

    Args:
        density: Share of each tensor's entries that is kept of each model, in (0, 1].
        target: Likewise of the result, which is denser otherwise; ``None`` to leave it.

    Example:
        >>> Pruned(0.3, target=0.3)
        Pruned(density=0.3, target=0.3)
    """

    density: float = 0.5
    target: float | None = None

    def __post_init__(self) -> None:
        checks.in_range("density", self.density, 0.0, 1.0, open_low=True)
        if self.target is not None:
            checks.in_range("target", self.target, 0.0, 1.0, open_low=True)

    @property
    def entrywise(self) -> bool:
        return False

    def combine(self, name: str, tensors: list[Tensor]) -> Tensor:
        if tensors[0].ndim < 2:
            return Average().combine(name, tensors)
        rows = [wide(reals(tensor)) for tensor in tensors]
        fused = _mean(rows, [_cut(row, self.density) for row in rows])
        if self.target is not None:
            fused.mul_(_cut(fused, self.target).holds(fused))
        result = torch.empty_like(tensors[0], memory_format=torch.contiguous_format)
        reals(result).copy_(fused)
        return result
