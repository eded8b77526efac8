"""How alike two models are, tensor by tensor and layer by layer.

    cosine = <a, b> / (|a| |b|)        distance = |a - b| / |a|

of all entries as one vector, with Euclidean norms; summed in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from lightning_tricks.fusion.plan import Step
from lightning_tricks.lifecycle.stored import Stored

__all__ = ["Likeness", "by_layer", "likeness", "likenesses"]

_ENTRIES = 1 << 18


@dataclass(frozen=True)
class Likeness:
    """Sums over the entries of two models; those of several tensors add up to those of all.

    Attributes:
        dot: Of the products of entries.
        first: Of the squares of the first model's.
        second: Of the squares of the second's.
        apart: Of the squares of differences.
    """

    dot: float = 0.0
    first: float = 0.0
    second: float = 0.0
    apart: float = 0.0

    def __add__(self, other: Likeness) -> Likeness:
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Likeness(*(one + another for one, another in pairs))

    @property
    def cosine(self) -> float:
        """The cosine of the angle between them, in [-1, 1]; NaN if one is zero."""
        norms = math.sqrt(self.first) * math.sqrt(self.second)
        return max(-1.0, min(1.0, self.dot / norms)) if norms else math.nan

    @property
    def distance(self) -> float:
        """Their distance as a share of the first's norm, at least 0; NaN if that is zero."""
        return math.sqrt(self.apart / self.first) if self.first else math.nan

    @property
    def norms(self) -> tuple[float, float]:
        """Their norms."""
        return math.sqrt(self.first), math.sqrt(self.second)


def likeness(first: Tensor, second: Tensor) -> Likeness:
    """Return how alike two tensors of one shape are.

    Example:
        >>> alike = likeness(torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0]))
        >>> alike.cosine, alike.norms
        (0.96, (5.0, 5.0))
    """
    wide = torch.complex128 if first.is_complex() else torch.float64
    one, other = first.to(wide).flatten(), second.to(wide).flatten()
    if first.is_complex():
        one, other = torch.view_as_real(one).flatten(), torch.view_as_real(other).flatten()
    apart = one - other
    sums = (one.dot(other), one.dot(one), other.dot(other), apart.dot(apart))
    return Likeness(*(float(value) for value in sums))


def likenesses(steps: Sequence[Step], other: int) -> dict[str, Likeness]:
    """Return how alike each floating tensor is in the first model and in that with index ``other``.

    Args:
        steps: What there is in the models; read in slices.
        other: From 1.
    """
    found: dict[str, Likeness] = {}
    for step in steps:
        if step.action == "fuse":
            found[step.names[0]] = _streamed(step.tensors[0], step.tensors[other])
    return found


def _streamed(first: Stored, second: Stored) -> Likeness:
    entries = _ENTRIES if first.sliceable and second.sliceable else max(1, first.numel)
    total = Likeness()
    for start in range(0, first.numel, entries):
        stop = min(start + entries, first.numel)
        total += likeness(first.read(start, stop), second.read(start, stop))
    return total


def by_layer(found: Mapping[str, Likeness]) -> dict[str, Likeness]:
    """Return the likeness of each layer: of all tensors whose names differ in the last part only.

    Example:
        >>> list(by_layer({"body.0.weight": Likeness(), "body.0.bias": Likeness(), "head": Likeness()}))
        ['body.0', 'head']
    """
    layers: dict[str, Likeness] = {}
    for name, alike in found.items():
        layer = name.rpartition(".")[0] or name
        layers[layer] = layers.get(layer, Likeness()) + alike
    return layers
