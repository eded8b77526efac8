"""Fisher-weighted mean: each model counts in each weight by how sure it is of it.

    theta = sum_i w_i F_i theta_i / sum_i w_i F_i, and sum_i w_i theta_i / sum_i w_i where all F_i are 0

``F_i`` is the diagonal of the Fisher information of model i, for each weight the mean over samples of the
squared gradient of the log-likelihood.

Reference: Matena and Raffel, "Merging Models with Fisher-Weighted Averaging", 2022,
https://arxiv.org/abs/2111.09832, equation 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lightning_tricks.core import checks
from lightning_tricks.core.select import clean_name
from lightning_tricks.core.tensors import Model
from lightning_tricks.fusion.by_names import ByNames
from lightning_tricks.fusion.methods import TensorwiseMethod, floating
from lightning_tricks.fusion.pieces import pieces, piecewise, weighted
from lightning_tricks.fusion.ties import check_weights
from lightning_tricks.lifecycle import files

__all__ = ["FisherWeighted", "fisher_weighted"]


def fisher_weighted(
    models: Sequence[Model], fishers: Sequence[Model], *, weights: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """Return the mean of ``models`` weighted by what they know of each weight.

    Args:
        models: At least one; of equal names, shapes and types.
        fishers: For each model the diagonal of its Fisher information, by the names of the tensors, of their
            shapes and not below 0. Tensors that none has are averaged.
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
class WithFishers(TensorwiseMethod):
    """Fuses by Fisher information that has been opened.

    Args:
        labels: What to call it, for each model.
        fishers: It, for each model.
        weights: One number for each model.
    """

    labels: list[str]
    fishers: list[Model] = field(repr=False)
    weights: list[float]

    @property
    def count(self) -> int:
        return len(self.fishers)

    @property
    def entrywise(self) -> bool:
        return False  # it knows the information of a whole tensor

    def checked(self, names: Sequence[str]) -> WithFishers:
        """Return itself, if the information is of tensors of these names, and each model's of the same.

        Raises:
            ValueError: If not; names the tensor.
        """
        known = {clean_name(name) for name in names}
        first = self.fishers[0]
        if not first:
            raise ValueError(f"{self.labels[0]} must hold at least one tensor, got none")
        for label, fisher in zip(self.labels, self.fishers, strict=True):
            if strange := [name for name in fisher if clean_name(name) not in known]:
                raise ValueError(f"{label} must be of the models' tensors, got {checks.listed(strange)}")
            if alone := [*(first.keys() ^ fisher.keys())]:
                raise ValueError(
                    f"{label} must be of the same tensors as {self.labels[0]}, but {checks.listed(alone)} "
                    "are in one of them alone"
                )
        return self

    def combine(self, name: str, tensors: list[Tensor]) -> Tensor:
        given = [self._of(place, name, tensors[0]) for place in range(len(tensors))]
        parts_of = pieces([each for each in given if each is not None]) if given[0] is not None else None

        def mean(start: int, parts: list[Tensor]) -> Tensor:
            plain = weighted([parts[0].clone(), *parts[1:]], self.weights).div_(sum(self.weights))
            if parts_of is None:
                return plain
            _, sure = next(parts_of)
            total = weighted([part.mul_(each) for part, each in zip(parts, sure, strict=True)], self.weights)
            divisor = weighted(sure, self.weights)
            return torch.where(divisor > 0, total / divisor, plain)

        return piecewise(tensors, mean)

    def _of(self, place: int, name: str, like: Tensor) -> Tensor | None:
        """Return the information of one model on one tensor; complex if that is, as both parts have it."""
        names = {clean_name(key): key for key in self.fishers[place]}
        if clean_name(name) not in names:
            return None
        found = self.fishers[place][names[clean_name(name)]]
        if found.shape != like.shape or not bool((found.isfinite() & (found >= 0)).all()):
            raise ValueError(
                f"{name} of {self.labels[place]} must be of shape {tuple(like.shape)}, finite and not below "
                f"0, got shape {tuple(found.shape)} and {found.min().item()} to {found.max().item()}"
            )
        return torch.complex(found.double(), found.double()) if like.is_complex() else found


@dataclass(frozen=True)
class FisherWeighted(ByNames):
    """Fuse by the mean weighted by Fisher information in files (:func:`fisher_weighted`).

    Args:
        fishers: For each model a file that ``torch.save`` wrote: a dict of the diagonal of its Fisher
            information, by the names of the model's tensors.
        weights: One number for each model, none below 0; ``None`` for equal ones.

    Example:
        >>> FisherWeighted(("a.fisher.pt", "b.fisher.pt"), weights=(1.0, 2.0)).count
        2
    """

    fishers: tuple[str, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.fishers, list | tuple) or not self.fishers:
            raise TypeError(f"fishers must be a list of files, got {self.fishers!r}")
        paths = tuple(checks.text("every entry of fishers", path) for path in self.fishers)
        object.__setattr__(self, "fishers", paths)
        if self.weights is not None:
            if not isinstance(self.weights, list | tuple) or len(self.weights) != len(paths):
                raise TypeError(f"weights must be one number for each of fishers, got {self.weights!r}")
            shares = [checks.finite("every entry of weights", weight) for weight in self.weights]
            check_weights(shares)
            object.__setattr__(self, "weights", tuple(shares))

    @property
    def count(self) -> int:
        return len(self.fishers)

    @property
    def entrywise(self) -> bool:
        return False

    def resolved(self, names: Sequence[str]) -> TensorwiseMethod:
        found = [_opened(path) for path in self.fishers]
        shares = [1.0] * len(found) if self.weights is None else [*self.weights]
        return WithFishers([*self.fishers], found, shares).checked(names)


def _opened(path: str) -> Model:
    try:
        found = files.load(Path(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"every file of fishers must be there, but {path!r} is not") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"every file of fishers must hold tensors by name, got {path!r}: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"every file of fishers must hold tensors by name, got {path!r}")
    return found
