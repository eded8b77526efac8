"""Greedy soup: models join an average, best first, as long as it does not get worse.

    soup <- {best model}
    for each other model, best first:
        if metric(mean(soup + {model})) is not worse than metric(mean(soup)): soup <- soup + {model}

The result is the mean of the soup, which by the chosen metric is no worse than the best model.

Reference: Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy
without increasing inference time", 2022, https://arxiv.org/abs/2203.05482, recipe 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lightning_tricks.core import checks
from lightning_tricks.core.tensors import Model
from lightning_tricks.fusion.average import average
from lightning_tricks.fusion.findings import tell
from lightning_tricks.fusion.methods import Evaluate, FusionMethod, check_alike, score_of

__all__ = ["GreedySoup", "greedy_soup"]


def greedy_soup(models: Sequence[Model], evaluate: Evaluate) -> dict[str, Tensor]:
    """Return the mean of the greedy soup of ``models``.

    Args:
        models: At least one; of equal names, shapes and types. Of two that are equally good the earlier
            comes first.
        evaluate: Called once for each model and once for each soup that is tried: 2 N - 1 times.

    Raises:
        ValueError: If the models do not fit one another.

    Example:
        >>> from torch import tensor
        >>> models = [{"w": tensor(0.0)}, {"w": tensor(4.0)}, {"w": tensor(9.0)}]
        >>> greedy_soup(models, lambda model: -abs(float(model["w"]) - 3.0))  # 4, then with 0; 9 spoils it
        {'w': tensor(2.)}
    """
    check_alike(models)
    scores = [score_of(evaluate, model) for model in models]
    order = sorted(range(len(models)), key=lambda index: -scores[index])
    soup, best = [order[0]], scores[order[0]]
    for index in order[1:]:
        # In the models' own order, so that what is taken from the last model is the latest.
        tried = sorted([*soup, index])
        score = score_of(evaluate, average([models[i] for i in tried]))
        if score >= best:
            soup, best = tried, score
    tell(members=soup, scores=scores, score=best)
    return average([models[i] for i in soup])


@dataclass(frozen=True)
class GreedySoup(FusionMethod):
    """Fuse by the greedy soup (:func:`greedy_soup`); evaluates 2 N - 1 times for N models.

    Args:
        monitor: The metric that decides; ``None`` for that of the technique which uses it.
        mode: ``"min"`` or ``"max"``, which way ``monitor`` is better; ``None`` as there.

    Example:
        >>> GreedySoup("val_accuracy", mode="max")
        GreedySoup(monitor='val_accuracy', mode='max')
    """

    monitor: str | None = None
    mode: Literal["min", "max"] | None = None

    def __post_init__(self) -> None:
        checks.objective(self.monitor, self.mode)

    @property
    def objective(self) -> tuple[str | None, str | None]:
        return self.monitor, self.mode

    def fuse(self, models: Sequence[Model], evaluate: Evaluate | None = None) -> dict[str, Tensor]:
        if evaluate is None:
            raise ValueError("evaluate must be given for a greedy soup, got None")
        return greedy_soup(models, evaluate)
