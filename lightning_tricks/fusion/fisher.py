"""Fisher-weighted mean: each model counts in each weight by how sure it is of it.

    theta = sum_i w_i F_i theta_i / sum_i w_i F_i, and sum_i w_i theta_i / sum_i w_i where all F_i are 0

``F_i`` is the diagonal of the Fisher information of model i, for each weight the mean over samples of the
squared gradient of the log-likelihood.

Reference: Matena and Raffel, "Merging Models with Fisher-Weighted Averaging", 2022,
https://arxiv.org/abs/2111.09832, equation 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_tricks.core import checks
from lightning_tricks.core.fisher import squared_gradients
from lightning_tricks.core.tensors import Model
from lightning_tricks.fusion.by_names import ByNames
from lightning_tricks.fusion.known import Known, checked_paths, opened
from lightning_tricks.fusion.methods import TensorwiseMethod, floating
from lightning_tricks.fusion.pieces import pieces, piecewise, weighted
from lightning_tricks.fusion.probe import Probe, Probing
from lightning_tricks.fusion.ties import check_weights

__all__ = ["FisherWeighted", "fisher_weighted"]


def fisher_weighted(
    models: Sequence[Model], fishers: Sequence[Model], *, weights: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """Return the mean of ``models`` weighted by what they know of each weight.

    Args:
        models: At least one; of equal names, shapes and types.
        fishers: For each model the diagonal of its Fisher information, by the names of the tensors, of their
            shapes and not below 0, as :func:`~lightning_tricks.fisher_information` returns it. Tensors that
            none has are averaged.
        weights: One number for each model, none below 0; ``None`` for equal ones.

    Raises:
        ValueError: If the models or their Fisher information do not fit one another; names the tensor.

    Example:
        >>> from torch import tensor
        >>> models = [{"w": tensor([0.0, 0.0])}, {"w": tensor([4.0, 4.0])}]
        >>> fisher_weighted(models, [{"w": tensor([1.0, 0.0])}, {"w": tensor([3.0, 0.0])}])
        {'w': tensor([3., 2.])}
    """
    labels = [f"fishers[{index}]" for index in range(len(fishers))]
    shares = [1.0] * len(fishers) if weights is None else [*weights]
    check_weights(shares)
    if not len(shares) == len(fishers) == len(models):
        raise ValueError(
            f"fishers and weights must be one for each of {len(models)} models, got {len(fishers)} and "
            f"{len(shares)}"
        )
    return WithFishers(labels, [*fishers], shares).checked(floating(models[0])).fuse(models)


@dataclass(frozen=True)
class WithFishers(Known):
    """Fuses by Fisher information that is at hand.

    Args:
        labels: What to call it, for each model.
        known: It, for each model.
        weights: One number for each model.
    """

    weights: list[float]

    def combine(self, name: str, tensors: list[Tensor]) -> Tensor:
        given = [self._of(place, name, tensors[0]) for place in range(len(tensors))]
        parts_of = pieces([each for each in given if each is not None]) if given[0] is not None else None

        def mean(start: int, parts: list[Tensor]) -> Tensor:
            plain = weighted([parts[0].clone(), *parts[1:]], self.weights).div_(sum(self.weights))
            if parts_of is None:
                return plain
            _, sure = next(parts_of)
            total = weighted([part.mul_(each) for part, each in zip(parts, sure, strict=True)], self.weights)
            divisor = weighted([*sure], self.weights)
            return torch.where(divisor > 0, total / divisor, plain)

        return piecewise(tensors, mean)

    def _of(self, place: int, name: str, like: Tensor) -> Tensor | None:
        """Return the information of one model on one tensor; complex if that is, as both parts have it."""
        if (found := self.of(place, name)) is None:
            return None
        if found.shape != like.shape or not bool((found.isfinite() & (found >= 0)).all()):
            raise ValueError(
                f"{name} of {self.labels[place]} must be of shape {tuple(like.shape)}, finite and not below "
                f"0, got shape {tuple(found.shape)} and {found.min().item()} to {found.max().item()}"
            )
        return torch.complex(found.double(), found.double()) if like.is_complex() else found


@dataclass(frozen=True)
class FisherWeighted(ByNames, Probing):
    """Fuse by the mean weighted by Fisher information (:func:`fisher_weighted`).

    Without files it costs the gradient of each sample for each model, which ``batches`` bounds in a run, and
    holds all models and as much information in memory.

    Args:
        fishers: For each model a file that ``torch.save`` wrote: a dict of the diagonal of its Fisher
            information, by the names of the model's tensors, such as
            :func:`~lightning_tricks.fisher_information` returns. ``None`` to compute it from a probe, whose
            ``loss`` must be minus the log-likelihood, such as the cross-entropy.
        weights: One number for each model, none below 0; ``None`` for equal ones.
        batches: Of how many batches of the training data of a run, without files; ``None`` for an epoch.

    Example:
        >>> FisherWeighted(("a.fisher.pt", "b.fisher.pt"), weights=(1.0, 2.0)).count
        2
    """

    fishers: tuple[str, ...] | None = None
    weights: tuple[float, ...] | None = None
    batches: int | None = None

    def __post_init__(self) -> None:
        if self.fishers is not None:
            object.__setattr__(self, "fishers", checked_paths("fishers", self.fishers))
        if self.weights is not None:
            given = len(self.weights) if isinstance(self.weights, list | tuple) else 0
            if given == 0 or given != len(self.fishers or self.weights):
                raise TypeError(f"weights must be one number for each of fishers, got {self.weights!r}")
            shares = [checks.finite("every entry of weights", weight) for weight in self.weights]
            check_weights(shares)
            object.__setattr__(self, "weights", tuple(shares))
        if self.batches is not None:
            checks.whole("batches", self.batches, 1)

    @property
    def count(self) -> int | None:
        known = self.fishers or self.weights
        return None if known is None else len(known)

    @property
    def entrywise(self) -> bool:
        return False

    @property
    def needs_probe(self) -> bool:
        return self.fishers is None

    def _with(self, labels: Sequence[str], fishers: list[Model]) -> WithFishers:
        shares = [1.0] * len(fishers) if self.weights is None else [*self.weights]
        return WithFishers([*labels], fishers, shares)

    def probed(self, models: Sequence[Model], probe: Probe) -> TensorwiseMethod:
        fishers = [_fisher_of(model, probe) for model in models]
        return self._with([f"the Fisher information of model {i}" for i in range(len(models))], fishers)

    def resolved(self, names: Sequence[str]) -> TensorwiseMethod:
        if self.fishers is None:
            raise ValueError(f"probe or fishers must be given for {self!r}, got neither")
        found = [opened("fishers", path) for path in self.fishers]
        return self._with(self.fishers, found).checked(names)


def _fisher_of(model: Model, probe: Probe) -> Model:
    sums, own = squared_gradients(probe.module, probe.placed(model), probe.batches, probe.loss)
    count = float(probe.add_up(torch.tensor(float(own))))
    if not count:
        raise ValueError("batches of probe must hold at least one sample, got none")
    fishers = {name: (probe.add_up(total) / count).cpu() for name, total in sums.items()}
    return {name: fishers[place] for name, place in probe.names(model).items() if place in fishers}
