"""The arc between two models: spherical linear interpolation, tensor by tensor.

    theta = sin((1 - t) phi) / sin(phi) theta_1 + sin(t phi) / sin(phi) theta_2,    0 <= t <= 1

``phi`` is the angle between the two tensors, each taken as one vector; ``t`` the share of the second model,
as in mergekit. Where the two are nearly parallel the arc is the straight line, to which the formula tends.

Reference: Shoemake, "Animating rotation with quaternion curves", 1985, https://doi.org/10.1145/325165.325242.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lightning_tricks.core import checks
from lightning_tricks.core.tensors import Model
from lightning_tricks.fusion.methods import TensorwiseMethod
from lightning_tricks.fusion.pieces import combination, inner_products

__all__ = ["Slerp", "slerp"]

PARALLEL = 0.9995
"""The cosine above which two tensors are interpolated linearly, below minus which refused; as in mergekit."""


def slerp(first: Model, second: Model, *, t: float) -> dict[str, Tensor]:
    """Return the point on the arc between two models at which ``second`` has the share ``t``.

    A tensor of one entry, or one that is zero in a model, has no arc: it is interpolated linearly.

    Args:
        first: Returned for ``t`` 0, but for integer and boolean tensors, which ``second`` gives.
        second: Of the same names, shapes and types; returned for ``t`` 1.
        t: In [0, 1].

    Raises:
        ValueError: If the models do not fit each other, ``t`` lies outside, or a tensor points the opposite
            way in the other model, so that no arc is the shortest; names it.

    Example:
        >>> from torch import tensor
        >>> slerp({"w": tensor([1.0, 0.0])}, {"w": tensor([0.0, 1.0])}, t=1 / 3)
        {'w': tensor([0.8660, 0.5000])}
    """
    return Slerp(t).fuse([first, second])


@dataclass(frozen=True)
class Slerp(TensorwiseMethod):
    """Fuse two models by spherical linear interpolation (:func:`slerp`), which keeps the length of weights.

    Args:
        t: Share of the second model, in [0, 1].

    Example:
        >>> Slerp(0.25)
        Slerp(t=0.25)
    """

    t: float

    def __post_init__(self) -> None:
        checks.in_range("t", self.t, 0.0, 1.0)

    @property
    def count(self) -> int:
        return 2

    @property
    def entrywise(self) -> bool:
        return False

    @property
    def wide_copies(self) -> int | None:
        return 1

    def combine(self, name: str, tensors: list[Tensor]) -> Tensor:
        (first, product), (_, second) = inner_products(tensors).tolist()
        length = math.sqrt(first) * math.sqrt(second)
        cosine = product / length if length > 0 and tensors[0].numel() > 1 else 1.0
        if cosine < -PARALLEL:
            raise ValueError(
                f"{name} must not point opposite ways in the two models for {self!r}, got a cosine of "
                f"{cosine:.6f}: no arc between them is the shortest; use Interpolate for it"
            )
        if cosine > PARALLEL:
            return combination(tensors, (1 - self.t, self.t))
        angle = math.acos(cosine)
        shares = [math.sin(share * angle) / math.sin(angle) for share in (1 - self.t, self.t)]
        return combination(tensors, shares)
