"""TIES: of what models changed, small changes are trimmed, and of the rest those count that agree in sign.

    delta_i <- delta_i where |delta_i| is among the largest density of its tensor, else 0
    sign    =  sgn(sum_i w_i delta_i)                                 entry by entry
    theta   =  theta_0 + scale (sum_i w_i delta_i) / (sum_i w_i)      over the i with sgn(delta_i) = sign

Where the changes cancel exactly, or no model's is left, theta_0 stays.

Reference: Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", 2023,
https://arxiv.org/abs/2306.01708 (which trims over all tensors of a model together; here as in mergekit).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_tricks.core import checks
from lightning_tricks.core.tensors import Model
from lightning_tricks.fusion.pieces import LARGE, difference, piecewise, weighted
from lightning_tricks.fusion.task_arithmetic import TaskVectors
from lightning_tricks.fusion.trimming import largest, share

__all__ = ["Ties", "changed", "check_weights", "elected", "ties"]

Keep = Callable[[int, Tensor, Tensor], Tensor]
"""Which entries of a change stay, from where a piece starts, the model's piece and that of the base."""
Merge = Callable[[list[Tensor], Sequence[float]], Tensor]
"""What becomes of the changes, which it may change, and their weights."""


def ties(
    base: Model,
    models: Sequence[Model],
    *,
    density: float = 0.2,
    scale: float = 1.0,
    weights: Sequence[float] | None = None,
) -> dict[str, Tensor]:
    """Return ``base`` with what changed most in ``models``, where they agree in which way.

    Args:
        base: What the models began with.
        models: At least one; of the names, shapes and types of ``base``.
        density: Share of each tensor's entries whose change is kept, in (0, 1]: rounded down, but at least
            one entry; of equal changes those that come first in the tensor.
        scale: What the mean change is multiplied by.
        weights: One number for each of ``models``, none below 0; ``None`` for equal ones.

    Raises:
        ValueError: If the models do not fit one another, or the weights do not fit them.

    Example:
        >>> from torch import tensor, zeros
        >>> models = [{"w": tensor([4.0, 1.0, 3.0, -2.0])}, {"w": tensor([2.0, 1.0, -5.0, 1.0])}]
        >>> ties({"w": zeros(4)}, models, density=0.5)
        {'w': tensor([ 3.,  0., -5.,  0.])}
    """
    shares = None if weights is None else tuple(weights)
    return Ties(density, scale=scale, weights=shares).fuse([base, *models])


def elected(changes: list[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the weighted mean of those ``changes`` that have the sign of their weighted sum, per entry.

    Args:
        changes: One or more of one shape, in double precision.
        weights: One number for each, none below 0.

    Example:
        >>> elected([torch.tensor([3.0, 1.0]), torch.tensor([-1.0, -1.0])], [1.0, 1.0])
        tensor([3., 0.])
    """
    sign = weighted([changes[0].clone(), *changes[1:]], weights).sign_()
    total, divisor = torch.zeros_like(sign), torch.zeros_like(sign)
    for change, weight in zip(changes, weights, strict=True):
        agrees = (change * sign).sign_().clamp_(min=0)
        total.addcmul_(change, agrees, value=weight)
        divisor.add_(agrees, alpha=weight)
    return total.div_(divisor.masked_fill_(divisor == 0, 1))


def changed(
    tensors: list[Tensor], keeps: Sequence[Keep], merge: Merge, *, weights: Sequence[float], scale: float
) -> Tensor:
    """Return the first of ``tensors`` with what is merged of how the others differ from it.

    Args:
        tensors: At least two; floating or complex, of one shape and type.
        keeps: One for each but the first.
        merge: Gets the changes with 0 where they are not kept, in double precision.
        weights: As many, for ``merge``.
        scale: What its result is multiplied by.
    """

    def combine(start: int, parts: list[Tensor]) -> Tensor:
        base, *models = parts
        masks = [keep(start, model, base) for keep, model in zip(keeps, models, strict=True)]
        changes = [model.sub_(base).mul_(mask) for model, mask in zip(models, masks, strict=True)]
        return base.add_(merge(changes, weights), alpha=float(scale))

    return piecewise(tensors, combine, LARGE)


def trimmed(tensor: Tensor, base: Tensor, density: float) -> Keep:
    """Return what keeps the share ``density`` of the entries of ``tensor`` that differ most from ``base``."""
    values = difference(tensor, base)
    cut = largest(values, share(density, len(values)))

    def keep(start: int, model: Tensor, origin: Tensor) -> Tensor:
        return cut.holds(model.to(values.dtype) - origin.to(values.dtype), start)

    return keep


def check_weights(weights: Sequence[float] | None) -> None:
    """Accept weights of which none is below 0 and one above.

    Raises:
        ValueError: If they are others.
    """
    if weights is not None and (min(weights, default=0) < 0 or max(weights, default=0) == 0):
        raise ValueError(f"weights must not be below 0, nor all 0, got {weights!r}")


@dataclass(frozen=True)
class Ties(TaskVectors):
    """Fuse what models changed most and agree on (:func:`ties`).

    Variances of BatchNorm that come out below 0 are refused by ``fuse``: average them (``Layerwise``).

    Args:
        density: Share of each tensor's changes that is kept, in (0, 1].
        scale: What the mean change is multiplied by.
        weights: One number for each model but the base, none below 0; ``None`` for equal ones.
        base: File of the model that they began with; ``None`` if that is the first of the models.

    Example:
        >>> Ties(0.5, base="pretrained.ckpt")
        Ties(scale=1.0, weights=None, base='pretrained.ckpt', density=0.5)
    """

    density: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.in_range("density", self.density, 0.0, 1.0, open_low=True)
        check_weights(self.weights)

    @property
    def entrywise(self) -> bool:
        return False

    @property
    def wide_copies(self) -> int | None:
        return 3

    def combine(self, name: str, tensors: list[Tensor]) -> Tensor:
        base, *models = tensors
        keeps = [trimmed(model, base, self.density) for model in models]
        return changed(tensors, keeps, elected, weights=self.factors(models), scale=self.scale)
