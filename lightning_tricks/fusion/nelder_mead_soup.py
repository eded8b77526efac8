"""A soup by Nelder and Mead: the mixture of models with the best metric, found without derivatives.

    max_a  metric(sum_i a_i theta_i),    sum_i a_i = 1

So the metric may be any, such as an accuracy. The search is :func:`~lightning_tricks.core.nelder_mead`, which
begins with the plain average and mixtures in which one model counts more.

References: Nelder and Mead, "A Simplex Method for Function Minimization", 1965,
https://doi.org/10.1093/comjnl/7.4.308; for the mixtures Wortsman et al., "Model soups: averaging weights of
multiple fine-tuned models improves accuracy without increasing inference time", 2022,
https://arxiv.org/abs/2203.05482.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_tricks.core import checks
from lightning_tricks.core.nelder_mead import Point, nelder_mead
from lightning_tricks.core.tensors import Model
from lightning_tricks.fusion.findings import tell
from lightning_tricks.fusion.methods import Evaluate, FusionMethod, check_finite, floating, score_of
from lightning_tricks.fusion.mixture import Mixture, Sign, coefficients

__all__ = ["NelderMeadSoup", "nelder_mead_soup"]


def nelder_mead_soup(
    models: Sequence[Model], evaluate: Evaluate, *, sign: Sign = "convex", evaluations: int = 40
) -> dict[str, Tensor]:
    """Return the best mixture of ``models`` that the search sees; no worse than the plain average.

    Args:
        models: At least one; of equal names, shapes and types.
        evaluate: Of equally good mixtures the first is taken; NaN is worst.
        sign: ``"convex"`` for coefficients not below 0; ``"affine"`` for any.
        evaluations: How often ``evaluate`` is called at most; at least once per model.

    Raises:
        ValueError: If the models do not fit one another, or are more than ``evaluations``.

    Example:
        >>> models = [{"w": torch.tensor(0.0)}, {"w": torch.tensor(4.0)}]
        >>> nelder_mead_soup(models, lambda model: -abs(float(model["w"]) - 3.0))["w"].round(decimals=2)
        tensor(3.)
    """
    check_finite(models)
    if evaluations < len(models):
        raise ValueError(f"evaluations must be one for each of {len(models)} models, got {evaluations}")

    def shares(point: Point) -> list[float]:
        # One of the numbers is spare, and always 0.
        found: list[float] = coefficients(torch.tensor([0.0, *point], dtype=torch.float64), sign).tolist()
        return found

    def mixed(point: Point) -> dict[str, Tensor]:
        return Mixture({"": shares(point)}, dict.fromkeys(floating(models[0]), "")).fuse(models)

    def badness(point: Point) -> float:
        return -score_of(evaluate, mixed(point))

    free = len(models) - 1
    simplex = [tuple(float(row == place) for place in range(free)) for row in range(-1, free)]
    best = nelder_mead(badness, simplex, evaluations=evaluations)
    tell(coefficients=shares(best))
    return mixed(best)


@dataclass(frozen=True)
class NelderMeadSoup(FusionMethod):
    """Fuse by the mixture with the best metric (:func:`nelder_mead_soup`).

    Costs ``evaluations`` passes of what evaluates; holds all models in memory. The more models,
    the more evaluations it needs; a metric with a gradient is better given to ``LearnedSoup``.

    Args:
        monitor: The metric that decides; ``None`` for that of the technique which uses it.
        mode: ``"min"`` or ``"max"``, which way ``monitor`` is better; ``None`` as there.
        sign: ``"convex"`` for coefficients not below 0, ``"affine"`` for any; they always make 1.
        evaluations: How many mixtures are evaluated at most; some ten for each model are few.

    Example:
        >>> NelderMeadSoup("val_accuracy", mode="max")
        NelderMeadSoup(monitor='val_accuracy', mode='max', sign='convex', evaluations=40)
    """

    monitor: str | None = None
    mode: Literal["min", "max"] | None = None
    sign: Sign = "convex"
    evaluations: int = 40

    def __post_init__(self) -> None:
        checks.objective(self.monitor, self.mode)
        checks.one_of("sign", self.sign, ("convex", "affine"))
        checks.whole("evaluations", self.evaluations, 1)

    @property
    def objective(self) -> tuple[str | None, str | None]:
        return self.monitor, self.mode

    @property
    def needed(self) -> str:
        return f"at most {self.evaluations}"

    def accepts(self, count: int) -> bool:
        return super().accepts(count) and count <= self.evaluations

    def fuse(self, models: Sequence[Model], evaluate: Evaluate | None = None) -> dict[str, Tensor]:
        if evaluate is None:
            raise ValueError("evaluate must be given for a soup by Nelder and Mead, got None")
        return nelder_mead_soup(models, evaluate, sign=self.sign, evaluations=self.evaluations)
