"""Model Stock: the mean of fine-tuned models, drawn back to where they began as far as they disagree.

    t     = N cos / (1 + (N - 1) cos)    where cos > 0, else 0
    theta = t mean_i(theta_i) + (1 - t) theta_0

``cos`` is, for each tensor, the mean over all pairs of models of the cosine between theta_i - theta_0 and
theta_j - theta_0. So the less the models agree in what they changed, the nearer is the result to the base.

Reference: Jang et al., "Model Stock: All we need is just a few fine-tuned models", 2024,
https://arxiv.org/abs/2403.19522, equation 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_tricks.core.tensors import Model
from lightning_tricks.fusion.methods import TensorwiseMethod, check_base
from lightning_tricks.fusion.pieces import combination, inner_products

__all__ = ["ModelStock", "model_stock", "share_of_mean"]


def model_stock(base: Model, models: Sequence[Model]) -> dict[str, Tensor]:
    """Return the point between ``base`` and the mean of ``models`` that Model Stock takes, tensor by tensor.

    Args:
        base: What the models began with.
        models: At least two; of the names, shapes and types of ``base``.

    Raises:
        ValueError: If the models do not fit one another.

    Example:
        >>> from torch import tensor, zeros
        >>> models = [{"w": tensor([2.0, 0.0])}, {"w": tensor([1.0, 3**0.5])}]  # 60 degrees: t is 2/3
        >>> model_stock({"w": zeros(2)}, models)
        {'w': tensor([1.0000, 0.5774])}
    """
    return ModelStock().fuse([base, *models])


def share_of_mean(products: Tensor) -> float:
    """Return t, the share of the mean of the models.

    Args:
        products: Inner products of what each of at least two models changed with what each did, in double
            precision. A model that changed nothing has a cosine of 0 with the others.

    Example:
        >>> share_of_mean(torch.eye(3).double())
        0.0
    """
    count = len(products)
    lengths = products.diagonal().sqrt()
    cosines = products / (lengths[:, None] * lengths)
    pairs = torch.ones_like(products, dtype=torch.bool).tril(-1)
    cosine = float(cosines.nan_to_num(0.0)[pairs].mean())
    return count * cosine / (1 + (count - 1) * cosine) if cosine > 0 else 0.0


@dataclass(frozen=True)
class ModelStock(TensorwiseMethod):
    """Fuse by the mean, as near to the base as the models disagree (:func:`model_stock`).

    Args:
        base: File of the model that they began with; ``None`` if that is the first of the models.

    Example:
        >>> ModelStock("pretrained.ckpt")
        ModelStock(base='pretrained.ckpt')
    """

    base: str | None = None

    def __post_init__(self) -> None:
        check_base(self.base)

    @property
    def least(self) -> int:
        return 3

    @property
    def entrywise(self) -> bool:
        return False

    def combine(self, name: str, tensors: list[Tensor]) -> Tensor:
        base, *models = tensors
        t = share_of_mean(inner_products(models, origin=base))
        return combination(tensors, [1 - t, *[t / len(models)] * len(models)])
