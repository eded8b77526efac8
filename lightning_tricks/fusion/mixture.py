"""A mixture of models: each tensor the sum of theirs, by coefficients that make 1 together.

Where coefficients are searched, they are written by free numbers x, one for each model and group of tensors:

    convex: a = softmax(x),    affine: a_i = 1 / N + x_i - mean(x)

All of them at 0 give the plain average.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from lightning_tricks.fusion.methods import TensorwiseMethod
from lightning_tricks.fusion.pieces import combination

__all__ = ["Mixture", "Per", "Sign", "coefficients", "group_of"]

Per = Literal["model", "layer", "tensor"]
Sign = Literal["convex", "affine"]


def coefficients(free: Tensor, sign: Sign) -> Tensor:
    """Return the coefficients that free numbers stand for; each row makes 1.

    Args:
        free: Shape (..., models).
        sign: ``"convex"`` for none below 0; ``"affine"`` for any.

    Example:
        >>> from torch import tensor
        >>> coefficients(tensor([0.0, 0.5]), "affine")
        tensor([0.2500, 0.7500])
    """
    if sign == "convex":
        return free.softmax(-1)
    return free - free.mean(-1, keepdim=True) + 1 / free.shape[-1]


def group_of(name: str, per: Per) -> str:
    """Return what the tensors that share coefficients with that of ``name`` have in common.

    Example:
        >>> [group_of("blocks.0.weight", per) for per in ("model", "layer", "tensor")]
        ['', 'blocks.0', 'blocks.0.weight']
    """
    return {"model": "", "layer": name.rpartition(".")[0], "tensor": name}[per]


@dataclass(frozen=True)
class Mixture(TensorwiseMethod):
    """Fuses by coefficients that are known.

    Args:
        coefficients: One of each model, by group.
        groups: That of each tensor, by its name.
    """

    coefficients: Mapping[str, Sequence[float]]
    groups: Mapping[str, str] = field(repr=False)

    def combine(self, name: str, tensors: list[Tensor]) -> Tensor:
        return combination(tensors, self.coefficients[self.groups[name]])
