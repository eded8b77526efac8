"""Points of latent space, from which a generator makes samples.

    z ~ Normal(0, 1)^d,    or    z uniform on the sphere of radius sqrt(d)

Both have mean square 1 per entry. A uniform law on a cube is left out: its corners are where a straight line
between two points never goes.

Reference: White, "Sampling Generative Networks", 2016, https://arxiv.org/abs/1609.04468, section 2.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_tricks.core import checks

__all__ = ["Latent", "latent_noise"]

_LAWS = ("gaussian", "sphere")


def latent_noise(
    count: int, size: int, *, law: str = "gaussian", generator: torch.Generator | None = None
) -> Tensor:
    """Return ``count`` points of latent space, shape (count, size), of mean square 1 per entry.

    Args:
        count: Number of points, at least 1.
        size: Dimensions of the space, at least 1.
        law: ``"gaussian"``, or ``"sphere"`` for a uniform law on the sphere of radius ``sqrt(size)``.
        generator: Source of the noise, on whose device it is drawn; ``None`` for torch's own of the CPU.
    """
    checks.one_of("law", law, _LAWS)
    shape = (checks.whole("count", count, 1), checks.whole("size", size, 1))
    z = torch.randn(shape, generator=generator, device=None if generator is None else generator.device)
    return z if law == "gaussian" else math.sqrt(size) * F.normalize(z)


@dataclass(frozen=True)
class Latent:
    """The latent space of a GAN (:func:`latent_noise`).

    Args:
        size: Its dimensions, at least 1.
        law: ``"gaussian"``, or ``"sphere"`` for the sphere of radius ``sqrt(size)``.

    Example:
        >>> Latent(16).draw(3).shape
        torch.Size([3, 16])
    """

    size: int
    _: KW_ONLY
    law: Literal["gaussian", "sphere"] = "gaussian"

    def __post_init__(self) -> None:
        """Check the settings."""
        checks.whole("size", self.size, 1)
        checks.one_of("law", self.law, _LAWS)

    def draw(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Return ``count`` points, shape (count, size)."""
        return latent_noise(count, self.size, law=self.law, generator=generator)
