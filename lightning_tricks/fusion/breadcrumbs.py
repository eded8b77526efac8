"""Model breadcrumbs: of what models changed, the largest changes are left out as well as the smallest.

    delta_i <- delta_i where |delta_i| is neither among the largest gamma of its tensor
               nor below the largest gamma + density, else 0
    theta   =  theta_0 + scale sum_i w_i delta_i

Reference: Davari and Belilovsky, "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks",
2023, https://arxiv.org/abs/2312.06795; gamma and density are those of mergekit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_tricks.core import checks
from lightning_tricks.core.tensors import Model
from lightning_tricks.fusion.pieces import difference, weighted
from lightning_tricks.fusion.task_arithmetic import TaskVectors
from lightning_tricks.fusion.ties import Keep, changed
from lightning_tricks.fusion.trimming import largest, share

__all__ = ["Breadcrumbs", "breadcrumbs"]


def breadcrumbs(
    base: Model,
    models: Sequence[Model],
    *,
    density: float = 0.9,
    gamma: float = 0.01,
    scale: float = 1.0,
    weights: Sequence[float] | None = None,
) -> dict[str, Tensor]:
    """Return ``base`` with the sum of what changed in ``models`` neither most nor least.

    Args:
        base: What the models began with.
        models: At least one; of the names, shapes and types of ``base``.
        density: Share of each tensor's entries whose change is kept, in (0, 1]: rounded down, but at least
            one entry; of equal changes those that come first in the tensor.
        gamma: Share of the largest changes, which are left out, in [0, 1): rounded down, and fewer if else
            there were too few left for ``density``.
        scale: What the sum is multiplied by.
        weights: One factor for each of ``models``; ``None`` for 1.

    Raises:
        ValueError: If the models do not fit one another, or the weights do not fit them.

    Example:
        >>> from torch import tensor, zeros
        >>> breadcrumbs({"w": zeros(4)}, [{"w": tensor([1.0, 9.0, -2.0, 3.0])}], density=0.5, gamma=0.25)
        {'w': tensor([ 0.,  0., -2.,  3.])}
    """
    factors = None if weights is None else tuple(weights)
    return Breadcrumbs(density, gamma=gamma, scale=scale, weights=factors).fuse([base, *models])


def between(tensor: Tensor, base: Tensor, density: float, gamma: float) -> Keep:
    """Return what keeps the entries of ``tensor`` that differ from ``base`` neither most nor least."""
    values = difference(tensor, base)
    kept = share(density, len(values))
    above = min(int(gamma * len(values)), len(values) - kept)
    upper, lower = largest(values, above), largest(values, above + kept)

    def keep(start: int, model: Tensor, origin: Tensor) -> Tensor:
        change = model.to(values.dtype) - origin.to(values.dtype)
        return lower.holds(change, start) & ~upper.holds(change, start)

    return keep


@dataclass(frozen=True)
class Breadcrumbs(TaskVectors):
    """Fuse what models changed neither most nor least (:func:`breadcrumbs`).

    Variances of BatchNorm that come out below 0 are refused by ``fuse``: average them (``Layerwise``).

    Args:
        density: Share of each tensor's changes that is kept, in (0, 1].
        gamma: Share of the largest changes, which are left out, in [0, 1); fewer if else there were too few
            left for ``density``.
        scale: What the sum is multiplied by.
        weights: One factor for each model but the base; ``None`` for 1.
        base: File of the model that they began with; ``None`` if that is the first of the models.

    Example:
        >>> Breadcrumbs(0.85, gamma=0.05)
        Breadcrumbs(scale=1.0, weights=None, base=None, density=0.85, gamma=0.05)
    """

    density: float = 0.9
    gamma: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.in_range("density", self.density, 0.0, 1.0, open_low=True)
        checks.in_range("gamma", self.gamma, 0.0, 1.0, open_high=True)

    @property
    def entrywise(self) -> bool:
        return False

    def combine(self, name: str, tensors: list[Tensor]) -> Tensor:
        base, *models = tensors
        keeps = [between(model, base, self.density, self.gamma) for model in models]
        return changed(tensors, keeps, weighted, weights=self.factors(models), scale=self.scale)
