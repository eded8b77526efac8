"""Similarity-weighted mean: the nearer a model is to the others, the more it counts, tensor by tensor.

    theta = sum_i w_i theta_i,    w = softmax(-d / (temperature mean(d)))

``d_i`` is how far model i is from the mean of all, from the others on average, or from the first one: by
1 - cosine of the tensors as vectors, or by the Euclidean distance. In units of the mean distance it does not
depend on the size of a tensor or of its entries. Where all distances are 0 the weights are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_tricks.core import checks
from lightning_tricks.core.tensors import Model
from lightning_tricks.fusion.methods import TensorwiseMethod
from lightning_tricks.fusion.pieces import combination, inner_products

__all__ = ["SimilarityWeighted", "similarity_weighted", "similarity_weights"]

Measure = Literal["cosine", "euclidean"]
To = Literal["mean", "others", "first"]


def similarity_weighted(
    models: Sequence[Model], *, measure: Measure = "cosine", to: To = "mean", temperature: float = 1.0
) -> dict[str, Tensor]:
    """Return the mean of ``models`` in which those count more that are more like the rest.

    Args:
        models: At least three, with ``to="first"`` two; of equal names, shapes and types. Two are equally
            far from their mean and from one another, which says nothing of either.
        measure: Of distance.
        to: Whether it is that to the mean of all, the mean of those to all others, or that to the first.
        temperature: Above 0. A small one takes the nearest model, a large one the plain mean.

    Raises:
        ValueError: If the models do not fit one another.

    Example:
        >>> models = [{"w": torch.tensor([value, 1.0])} for value in (1.0, 1.1, 5.0)]
        >>> similarity_weighted(models, measure="euclidean")
        {'w': tensor([1.8056, 1.0000])}
    """
    return SimilarityWeighted(measure, to=to, temperature=temperature).fuse(models)


def similarity_weights(distances: Tensor, temperature: float) -> list[float]:
    """Return the weights of models at these distances, together 1.

    Example:
        >>> [round(weight, 3) for weight in similarity_weights(torch.tensor([1.0, 1.0, 4.0]), 1.0)]
        [0.45, 0.45, 0.1]
    """
    mean = distances.mean()
    ratios = distances / mean if mean > 0 else torch.zeros_like(distances)
    # From the nearest, lest all overflow at a temperature near 0.
    weights: list[float] = torch.softmax((ratios.min() - ratios) / float(temperature), dim=0).tolist()
    return weights


def _cosine(tensors: list[Tensor], to: To) -> Tensor:
    products = inner_products(tensors)
    if to == "mean":
        lengths = products.diagonal().sqrt() * products.sum().sqrt()
        return 1 - _ratio(products.sum(1), lengths)
    lengths = products.diagonal().sqrt()
    return _of_pairs(1 - _ratio(products, lengths[:, None] * lengths), to)


def _euclidean(tensors: list[Tensor], to: To) -> Tensor:
    # From the first, because numbers far from 0 would lose what they differ by.
    products = inner_products(tensors, origin=tensors[0])
    squares = products.diagonal()
    if to == "mean":
        return (squares - 2 * products.mean(1) + products.mean()).clamp(min=0).sqrt()
    return _of_pairs((squares[:, None] + squares - 2 * products).clamp(min=0).sqrt(), to)


def _ratio(products: Tensor, lengths: Tensor) -> Tensor:
    """Return cosines; 0 with a tensor that is zero, which has no direction."""
    return torch.where(lengths > 0, products / lengths, 0.0).clamp(-1, 1)


def _of_pairs(distances: Tensor, to: To) -> Tensor:
    distances.fill_diagonal_(0.0)
    return distances[0] if to == "first" else distances.sum(1)  # only their ratios count


@dataclass(frozen=True)
class SimilarityWeighted(TensorwiseMethod):
    """Fuse by a mean in which models count by their likeness to the rest (:func:`similarity_weighted`).

    Models of different initialisations are all equally unlike: they need alignment first.

    Args:
        measure: ``"cosine"`` or ``"euclidean"``.
        to: From where distances are taken: the ``"mean"`` of all, the ``"others"``, or the ``"first"`` model.
        temperature: Above 0. A small one takes the nearest model, a large one the plain mean.

    Example:
        >>> SimilarityWeighted("euclidean", temperature=0.5)
        SimilarityWeighted(measure='euclidean', to='mean', temperature=0.5)
    """

    measure: Measure = "cosine"
    to: To = "mean"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        checks.one_of("measure", self.measure, ("cosine", "euclidean"))
        checks.one_of("to", self.to, ("mean", "others", "first"))
        checks.in_range("temperature", self.temperature, 0.0, open_low=True, open_high=True)

    @property
    def least(self) -> int:
        return 2 if self.to == "first" else 3

    @property
    def entrywise(self) -> bool:
        return False

    def combine(self, name: str, tensors: list[Tensor]) -> Tensor:
        distances = (_cosine if self.measure == "cosine" else _euclidean)(tensors, self.to)
        return combination(tensors, similarity_weights(distances, self.temperature))
