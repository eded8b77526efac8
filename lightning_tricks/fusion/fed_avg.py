"""Federated averaging: models that were trained on data of their own count by how many samples they saw.

    theta = sum_i n_i / n theta_i,    n = sum_i n_i

Reference: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", 2017,
https://arxiv.org/abs/1602.05629.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_tricks.core.tensors import Model
from lightning_tricks.fusion.by_samples import BySamples
from lightning_tricks.fusion.pieces import combination

__all__ = ["FedAvg", "fed_avg"]


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


@dataclass(frozen=True)
class FedAvg(BySamples):
    """Fuse by the mean weighted by samples (:func:`fed_avg`).

    Args:
        samples: How many samples each model was trained on; not below 0, and not all 0. ``None`` for what
            their checkpoints say: the number under ``samples`` beside the state dict, else that among the
            hyperparameters, else that among the data module's.

    Example:
        >>> FedAvg((300, 100))
        FedAvg(samples=(300, 100))
    """

    def combine(self, name: str, tensors: list[Tensor]) -> Tensor:
        return combination(tensors, self.shares)
