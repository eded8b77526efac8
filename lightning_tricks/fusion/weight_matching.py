"""Git re-basin by weight matching: the units of one network in the order of another's.

    maximise over P:  sum_l <A_l, P_l B_l P_(l-1)^T>

over the tensors ``A_l`` and ``B_l`` of two models, by one permutation after the other, each an assignment
problem that is solved exactly while the others are held; until none gets better. Running statistics are
moved with their units, but do not count.

Several models: each to the first; or in turn each to the mean of the others, until none moves.

The order of visits is random as in the paper, but for the first round: it begins at the ends of the network,
which no permutation changes, and leaves out tensors whose other permutations have not been found yet. So a
permuted copy is found at once, where the paper's begins with the wrong neighbours.

Reference: Ainsworth et al., "Git Re-Basin: Merging Models modulo Permutation Symmetries", 2022,
https://arxiv.org/abs/2209.04836, algorithms 1 and 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_tricks.core.extras import extra
from lightning_tricks.core.seeds import seed_of
from lightning_tricks.core.tensors import Model
from lightning_tricks.fusion.average import average
from lightning_tricks.fusion.methods import check_finite, floating
from lightning_tricks.fusion.permutations import Place, Spec, moved, permuted, places

__all__ = ["Progress", "align", "align_to_mean", "weight_matching"]

Progress = Callable[[str], None]
"""Is told the name of each permutation that has been looked at."""


@torch.no_grad()
def weight_matching(
    spec: Spec, first: Model, second: Model, *, seed: int = 0, progress: Progress | None = None
) -> dict[str, Tensor]:
    """Return the permutations that bring the units of ``second`` into the order of those of ``first``.

    Args:
        spec: What each permutation acts on.
        first: Stays as it is.
        second: Of the same names, shapes and types; for :func:`permuted`.
        seed: Of the order in which permutations are visited.
        progress: Is told of each visit.

    Raises:
        ModuleNotFoundError: If scipy is not installed.
        ValueError: If the spec does not fit the models, or they do not fit each other or are not finite.

    Example:
        >>> spec = {"a": ("P", None), "b": (None, "P")}
        >>> first = {"a": torch.tensor([[1.0], [5.0]]), "b": torch.tensor([[3.0, 4.0]])}
        >>> weight_matching(spec, first, {"a": torch.tensor([[5.0], [1.0]]), "b": first["b"]})
        {'P': tensor([1, 0])}
    """
    matching = _Matching(spec, first, second, progress)
    while (name := matching.next_known()) is not None:
        matching.improve(name)
    generator = torch.Generator().manual_seed(seed_of(seed, "weight matching"))
    matching.finish(generator)
    return matching.found


class _Matching:
    """The permutations of ``second`` that have been found.

    Attributes:
        places: Of each permutation where it acts, where tensors count.
        found: The permutations; the identity where nothing is known.
    """

    def __init__(self, spec: Spec, first: Model, second: Model, progress: Progress | None) -> None:
        check_finite([first, second])
        where = places(spec, first)
        counted = {name for name in floating(first) if name.rpartition(".")[2] not in _STATISTICS}
        self.places = {
            name: [place for place in all_places if place.name in counted]
            for name, all_places in where.items()
        }
        self.found = {name: torch.arange(all_places[0].units) for name, all_places in where.items()}
        self._first, self._second, self._progress = first, second, progress
        self._known: set[str] = set()
        self._settled: set[str] = set()  # the best as long as the others stay
        self._on: dict[str, list[tuple[str, Place]]] = {}
        for name, all_places in self.places.items():
            for place in all_places:
                self._on.setdefault(place.name, []).append((name, place))

    def next_known(self) -> str | None:
        """Return the permutation of which most is told by those that are known; ``None`` if none is left."""
        left = [name for name in self.places if name not in self._known]
        told = {name: sum(self._first[place.name].numel() for place in self._telling(name)) for name in left}
        return max(left, key=lambda name: told[name], default=None)

    def _telling(self, name: str) -> list[Place]:
        """Return those places of a permutation where all others are known."""
        return [
            place
            for place in self.places[name]
            if all(other in self._known for other, at in self._on[place.name] if at is not place)
        ]

    def finish(self, generator: torch.Generator) -> None:
        """Visit the permutations in random order until none gets better."""
        self._known |= {*self.places}
        names, better = list(self.places), True
        while better:
            better = False
            for index in torch.randperm(len(names), generator=generator).tolist():
                better |= self.improve(names[index])

    def improve(self, name: str) -> bool:
        """Find a permutation anew, with the others as they are; return whether it is better."""
        with extra("alignment"):
            from scipy.optimize import linear_sum_assignment
        fresh = name not in self._known
        at = (self._telling(name) if fresh else []) or self.places[name]
        self._known.add(name)
        if name in self._settled or not at:
            return False
        if self._progress is not None:
            self._progress(name)
        gains = self._gains(name, at[0])
        for place in at[1:]:
            gains = gains + self._gains(name, place)
        order = torch.from_numpy(linear_sum_assignment(gains.numpy(), maximize=True)[1])
        if not fresh:
            self._settled.add(name)
            if not self._gained(name, order, gains):
                return False
        self.found[name] = order
        for place in at:
            self._settled -= {other for other, beside in self._on[place.name] if beside is not place}
        return True

    def _gained(self, name: str, order: Tensor, gains: Tensor) -> bool:
        """Return whether ``order`` is better than what there is, by more than rounding."""
        rows, least = torch.arange(len(order)), 10 * torch.finfo(gains.dtype).eps * gains.norm()
        before = self.found[name]
        if not gains[rows, order].sum() - gains[rows, before].sum() > least:
            return False
        tensors = [place.name for place in self.places[name]]
        if len({*tensors}) == len(tensors):
            return True
        # Where a tensor has it on two axes, what one of them gains says nothing of both.
        self.found[name] = order
        after = self._score(tensors)
        self.found[name] = before
        return bool(after - self._score(tensors) > least)

    def _score(self, tensors: Sequence[str]) -> Tensor:
        """Return the inner product of the two models in these tensors."""
        pairs = (
            (_real(self._first[name]), _real(self._moved(name, None))) for name in dict.fromkeys(tensors)
        )
        return torch.stack([(one * other).sum() for one, other in pairs]).sum()

    def _gains(self, name: str, place: Place) -> Tensor:
        """Return the inner product of each unit of the first model with each of the second."""
        one, other = (
            _real(tensor).movedim(place.axis, 0)[place.start : place.stop].reshape(place.units, -1)
            for tensor in (self._first[place.name], self._moved(place.name, place))
        )
        return one @ other.T

    def _moved(self, tensor: str, but: Place | None) -> Tensor:
        moves = [(at, self.found[name]) for name, at in self._on[tensor] if at is not but]
        return moved(self._second[tensor], moves)


_STATISTICS = ("running_mean", "running_var")


def _real(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in at least float32 on the CPU; complex entries as two, whose products add up."""
    tensor = tensor.cpu()
    if tensor.is_complex():
        return torch.view_as_real(tensor)
    return tensor.to(torch.float32 if tensor.dtype.itemsize < 4 else tensor.dtype)


@torch.no_grad()
def align(
    models: Sequence[Model], spec: Spec, *, seed: int = 0, progress: Progress | None = None
) -> list[Model]:
    """Return ``models`` with the units of all in the order of those of the first, each as it matches it best.

    Args:
        models: At least one; of equal names, shapes and types.
        spec: What each permutation acts on.
        seed: As in :func:`weight_matching`.
        progress: Likewise.

    Raises:
        ValueError: As :func:`weight_matching`.
    """
    return [
        *models[:1],
        *(
            permuted(model, spec, weight_matching(spec, models[0], model, seed=seed, progress=progress))
            for model in models[1:]
        ),
    ]


@torch.no_grad()
def align_to_mean(
    models: Sequence[Model], spec: Spec, *, seed: int = 0, progress: Progress | None = None
) -> list[Model]:
    """Return ``models`` with the units of all in one order, each as it matches the mean of the others best.

    Args:
        models: At least one; of equal names, shapes and types. The first stays as it is.
        spec: As in :func:`align`, and so on.
        seed: Of all orders of visits.
        progress: Is told of each visit.

    Raises:
        ValueError: As :func:`weight_matching`.
    """
    found = align(models, spec, seed=seed, progress=progress)
    generator = torch.Generator().manual_seed(seed_of(seed, "order of models"))
    moving = len(models) > 2
    while moving:
        moving = False
        for index in (torch.randperm(len(models) - 1, generator=generator) + 1).tolist():
            mean = average([model for place, model in enumerate(found) if place != index])
            matching = _Matching(spec, mean, found[index], progress)
            matching.finish(generator)
            if any(not torch.equal(order, torch.arange(len(order))) for order in matching.found.values()):
                found[index], moving = permuted(found[index], spec, matching.found), True
    return found
