"""The last k snapshots of a run's weights, in memory or in files, and sums over them that lose nothing.

A sum is kept as two numbers of 64 bits, high + low, of which high is the sum rounded:

    t, e = two_sum(high, x);    high, low = two_sum(t, e + low)

where two_sum returns a rounded sum and its rounding error, exactly. Since nothing is rounded away, x can be
taken off again as if it had never been added, and a mean is that of the snapshots at hand, however many came
before. That holds where the largest value of an entry among k + 1 of them, k < 64, is less than 2 ** 75 times
the smallest that is not 0, and 2 ** 46 times for weights of 64 bits.

Reference: Dekker, "A floating-point technique for extending the available precision", 1971,
https://doi.org/10.1007/BF01397083; two_sum is Knuth's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_tricks.core.collect import EverySteps
from lightning_tricks.core.select import clean_name
from lightning_tricks.core.tensors import Model
from lightning_tricks.lifecycle.layouts import layouts_of, parts_of
from lightning_tricks.lifecycle.snapshots import Shelf, Snapshot

if TYPE_CHECKING:
    from lightning_tricks.lifecycle.weights import Weights

__all__ = ["ExactSum", "InFiles", "InMemory", "Window", "all_finite", "two_sum"]


def two_sum(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rounded sum of two tensors of one type, and the error that the rounding made.

    Example:
        >>> two_sum(torch.tensor(2.0**24), torch.tensor(1.0))
        (tensor(16777216.), tensor(1.))
    """
    total = first + second
    part = total - first
    return total, (first - (total - part)) + (second - part)


class ExactSum:
    """The sum of tensors that come and go (formulas above).

    Attributes:
        high: The sum, rounded to 64 bits.
    """

    def __init__(self, like: Tensor) -> None:
        """Start at zero, with the shape and on the device of ``like``."""
        self.high: Tensor = torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float64))
        self._low = torch.zeros_like(self.high)

    @torch.no_grad()
    def add(self, value: Tensor) -> None:
        """Take in ``value``, of any type and device."""
        total, error = two_sum(self.high, value.to(self.high))
        self.high, self._low = two_sum(total, error + self._low)

    def take_off(self, value: Tensor) -> None:
        """Take off a ``value`` that was taken in."""
        self.add(-value)


def all_finite(sums: Iterable[ExactSum]) -> bool:
    """Return whether all sums are numbers; waits once for the device on which they are."""
    flags = [total.high.isfinite().all() for total in sums]
    return not flags or bool(torch.stack([flag.to(flags[0].device) for flag in flags]).all())


class Window(ABC):
    """The last ``k`` snapshots; those of several processes are spread as the weights are."""

    def __init__(self, k: int) -> None:
        """Start without any."""
        self.k = k

    @abstractmethod
    def __len__(self) -> int:
        """Return how many there are."""

    @abstractmethod
    def push(self, weights: Weights, now: Mapping[str, Tensor], *, moment: int) -> Model | None:
        """Take a snapshot, and return the one that leaves, if there are too many; by all processes together.

        Args:
            weights: Those of the run.
            now: What this process holds of the tensors that are averaged, by clean names.
            moment: Its number in the run, more than that of the last.
        """

    @abstractmethod
    def each(self, weights: Weights) -> Iterator[Model]:
        """Yield what this process holds of each, by clean names, oldest first; by all processes together."""

    def join(self, name: str, value: Tensor) -> None:  # noqa: B027  # files hold all weights anyway
        """Take note that one more tensor is averaged from now on, of which all snapshots hold ``value``."""

    def remember(self) -> None:  # noqa: B027  # only files are deleted later
        """Take note that a checkpoint is being written."""

    @abstractmethod
    def saved(self, weights: Weights) -> dict[str, Any]:
        """Return what a checkpoint must hold; by all processes together."""

    @abstractmethod
    def restore(self, weights: Weights, state: dict[str, Any], *, moment: int) -> None:
        """Take back what :meth:`saved` returned; by all processes together."""


class InMemory(Window):
    """Snapshots in the memory of each process, and in its checkpoints."""

    def __init__(self, k: int, device: str | None) -> None:
        """Start without any; they are kept on ``device``, or beside the weights."""
        super().__init__(k)
        self._device = device
        self._kept: list[dict[str, Tensor]] = []

    def __len__(self) -> int:
        return len(self._kept)

    def push(self, weights: Weights, now: Mapping[str, Tensor], *, moment: int) -> Model | None:
        self._kept.append({name: self._copy(value) for name, value in now.items()})
        return self._kept.pop(0) if len(self._kept) > self.k else None

    def _copy(self, value: Tensor) -> Tensor:
        return value.to(self._device or value.device, copy=True)

    def each(self, weights: Weights) -> Iterator[Model]:
        return iter(self._kept)

    def join(self, name: str, value: Tensor) -> None:
        copy = self._copy(value)
        for snapshot in self._kept:
            snapshot.setdefault(name, copy)

    def saved(self, weights: Weights) -> dict[str, Any]:
        # By name, because a resumed run has them in another order.
        return {"kept": [dict(weights.gather(dict(sorted(each.items())))) for each in self._kept]}

    def restore(self, weights: Weights, state: dict[str, Any], *, moment: int) -> None:
        layouts = layouts_of(weights.trainer, weights.module)
        held = {clean_name(name): value.device for name, value in weights.tensors().items()}
        self._kept = [
            {name: value.to(self._device or held[name]) for name, value in parts_of(each, layouts).items()}
            for each in state["kept"][-self.k :]
        ]


class InFiles(Window):
    """Snapshots as files of whole weights, which the first process writes and reads."""

    def __init__(self, k: int, weights: Weights, folder: str) -> None:
        """Start without any, in ``folder`` beside the checkpoints; to be called by all processes together."""
        super().__init__(k)
        # Each moment is a step of its own to the shelf, for which they are counted elsewhere.
        self._shelf = Shelf.of_run(weights.trainer, EverySteps(1, k), folder=folder)

    def __len__(self) -> int:
        return len(self._shelf.kept)

    def push(self, weights: Weights, now: Mapping[str, Tensor], *, moment: int) -> Model | None:
        kept = self._shelf.kept
        leaves = self._read(weights, kept[0]) if len(kept) >= self.k else None
        self._shelf.take(lambda: _whole(weights, now), position=moment, epoch=0)
        return leaves

    def _read(self, weights: Weights, snapshot: Snapshot) -> Model:
        parts = weights.spread(lambda: self._shelf.load(snapshot))
        return {clean_name(name): value for name, value in parts.items()}

    def each(self, weights: Weights) -> Iterator[Model]:
        return (self._read(weights, snapshot) for snapshot in self._shelf.kept)

    def remember(self) -> None:
        self._shelf.remember()

    def saved(self, weights: Weights) -> dict[str, Any]:
        return {"shelf": self._shelf.saved()}

    def restore(self, weights: Weights, state: dict[str, Any], *, moment: int) -> None:
        at = getattr(weights.trainer, "ckpt_path", None)
        beside = None if at is None else Path(at).parent
        self._shelf.restore(state["shelf"], beside, position=moment, epoch=0)
        self._shelf.skip(position=moment, epoch=0)  # the run may have another length, and so other moments
        self._shelf.kept = self._shelf.kept[-self.k :]


def _whole(weights: Weights, now: Mapping[str, Tensor]) -> Model:
    """Return all weights, whole, in the first process; ``now`` as it is, whatever state dicts make of it."""
    model = weights.tensors()
    names = {clean_name(name): name for name in model}
    return weights.gather({**model, **{names.get(name, name): value for name, value in now.items()}})
