"""DARE: of what models changed most is dropped at random, and the rest made larger to make up for it.

    delta_i <- m_i delta_i / density,    m_i ~ Bernoulli(density), entry by entry

With ``Dare`` these are added as in task arithmetic, of which the result is an unbiased estimate; with
``DareTies`` those are taken that agree in sign, as in TIES. The paper's drop rate is p = 1 - density.

Reference: Yu et al., "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free
Lunch", 2024, https://arxiv.org/abs/2311.03099.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from lightning_tricks.core import checks
from lightning_tricks.core.seeds import seed_of
from lightning_tricks.core.select import clean_name
from lightning_tricks.core.tensors import Model
from lightning_tricks.fusion.pieces import weighted
from lightning_tricks.fusion.task_arithmetic import TaskVectors
from lightning_tricks.fusion.ties import Keep, changed, check_weights, elected

__all__ = ["Dare", "DareTies", "dare"]

STEPS = 1 << 16
"""Of how many equal steps a probability is: four draws of a random word of 64 bits."""


def dare(
    base: Model,
    models: Sequence[Model],
    *,
    density: float = 0.1,
    scale: float = 1.0,
    weights: Sequence[float] | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return ``base`` with a random part of what changed in ``models``, made larger to make up for the rest.

    Args:
        base: What the models began with.
        models: At least one; of the names, shapes and types of ``base``.
        density: Probability with which the change of an entry is kept, in (0, 1], in steps of 1 / 65536.
        scale: What the sum is multiplied by.
        weights: One factor for each of ``models``; ``None`` for 1.
        seed: Of the draws, which depend on it, on the tensor's name and on the model's place alone.

    Raises:
        ValueError: If the models do not fit one another, or the weights do not fit them.

    Example:
        >>> fused = dare({"w": torch.zeros(8)}, [{"w": torch.ones(8)}], density=0.5, seed=1)
        >>> fused["w"].unique()
        tensor([0., 2.])
    """
    shares = None if weights is None else tuple(weights)
    return Dare(density, scale=scale, weights=shares, seed=seed).fuse([base, *models])


def dropping(density: float, seed: int) -> Keep:
    """Return what keeps entries by chance."""
    steps = steps_of(density)
    draws = numpy.random.SFC64(seed)  # twice as fast as torch's generator

    def keep(start: int, model: Tensor, base: Tensor) -> Tensor:
        if steps == STEPS:
            return torch.ones_like(model)
        words = draws.random_raw(-(-len(model) // 4))
        drawn, border = torch.from_numpy(words.view("int16"))[: len(model)], steps - STEPS // 2
        # 1 where it is below the border, else 0: arithmetic, because comparisons take thrice as long.
        return drawn.clamp_(border - 1, border).neg_().add_(border).to(model)

    return keep


def steps_of(density: float) -> int:
    """Return the probability ``density`` in :data:`STEPS`."""
    return min(max(round(density * STEPS), 1), STEPS)


@dataclass(frozen=True)
class Dare(TaskVectors):
    """Fuse a random part of what models changed, added as in task arithmetic (:func:`dare`).

    Variances of BatchNorm that come out below 0 are refused by ``fuse``: average them (``Layerwise``).

    Args:
        density: Probability with which the change of an entry is kept, in (0, 1]; 1 minus the drop rate.
        scale: What the sum is multiplied by.
        weights: One factor for each model but the base; ``None`` for 1.
        base: File of the model that they began with; ``None`` if that is the first of the models.
        seed: Of the draws, at least 0.

    Example:
        >>> Dare(0.1, seed=3)
        Dare(scale=1.0, weights=None, base=None, density=0.1, seed=3)
    """

    density: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.in_range("density", self.density, 0.0, 1.0, open_low=True)
        checks.whole("seed", self.seed)

    @property
    def entrywise(self) -> bool:
        return False  # what is drawn for an entry follows from its place in the whole tensor

    @property
    def wide_copies(self) -> int | None:
        return 1

    def combine(self, name: str, tensors: list[Tensor]) -> Tensor:
        keeps, weights = self.keeps(name, tensors), self.factors(tensors[1:])
        return changed(tensors, keeps, weighted, weights=weights, scale=self.gain())

    def gain(self) -> float:
        """Return what kept changes are multiplied by: the scale, over the chance to be kept."""
        return self.scale * STEPS / steps_of(self.density)

    def keeps(self, name: str, tensors: list[Tensor]) -> list[Keep]:
        """Return which changes of each model are kept."""
        places = range(len(tensors) - 1)
        return [dropping(self.density, seed_of(self.seed, clean_name(name), place)) for place in places]


@dataclass(frozen=True)
class DareTies(Dare):
    """Fuse a random part of what models changed, the mean of what agrees in sign as in :func:`ties`.

    Variances of BatchNorm that come out below 0 are refused by ``fuse``: average them (``Layerwise``).

    Args:
        density: Probability with which the change of an entry is kept, in (0, 1]; 1 minus the drop rate.
        scale: What the mean is multiplied by.
        weights: One number for each model but the base, none below 0; ``None`` for equal ones.
        base: File of the model that they began with; ``None`` if that is the first of the models.
        seed: Of the draws, at least 0.

    Example:
        >>> DareTies(0.5, weights=(1.0, 2.0))
        DareTies(scale=1.0, weights=(1.0, 2.0), base=None, density=0.5, seed=0)
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weights(self.weights)

    def combine(self, name: str, tensors: list[Tensor]) -> Tensor:
        keeps, weights = self.keeps(name, tensors), self.factors(tensors[1:])
        return changed(tensors, keeps, elected, weights=weights, scale=self.gain())
