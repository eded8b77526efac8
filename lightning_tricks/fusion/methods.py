"""What every way to fuse models has in common: its policy base, and what it must not do to a tensor."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import torch
from torch import Tensor

from lightning_tricks.core import checks
from lightning_tricks.core.tensors import Model
from lightning_tricks.fusion.numbers import check_numbers, check_result, label_of, mixes

__all__ = [
    "Evaluate",
    "FusionMethod",
    "TensorwiseMethod",
    "check_alike",
    "check_base",
    "check_finite",
    "check_names",
    "check_same",
    "floating",
    "fuse_tensors",
    "score_of",
]

Evaluate = Callable[[Model], float]  # how good a model is; higher is better, NaN is worst
Combine = Callable[[str, list[Tensor]], Tensor]
"""What becomes of the tensors of one name."""


class Shaped(Protocol):
    """A tensor, or what stands for one that has not been read."""

    @property
    def shape(self) -> torch.Size:
        """Its shape."""

    @property
    def dtype(self) -> torch.dtype:
        """Its type."""


class FusionMethod(ABC):
    """Base of the policies that fuse; frozen dataclasses, for a technique or by themselves.

    They are not marked as final: jsonargparse takes no final class for the default of a setting.
    """

    @property
    def count(self) -> int | None:
        """How many models :meth:`fuse` needs, the base included; ``None`` for any number from ``least``."""
        return None

    @property
    def least(self) -> int:
        """How few models :meth:`fuse` makes do with, the base included, where :attr:`count` is ``None``."""
        return 1

    @property
    def base(self) -> str | None:
        """The file of the model from which the others went off, which goes first in :meth:`fuse`.

        ``None`` for a method that knows none, or for which the first of the models is that.
        """
        return None

    @property
    def objective(self) -> tuple[str | None, str | None] | None:
        """What it evaluates candidates by, a metric and its mode; ``None`` if it evaluates none.

        A metric of ``None`` is that of the technique which uses it.
        """
        return None

    @property
    def entrywise(self) -> bool:
        """Whether an entry of the result depends on no other entries, except through what is evaluated.

        Then processes that hold parts of the weights each fuse their own.
        """
        return True

    @property
    def wide_copies(self) -> int | None:
        """How much memory fusing takes beside the models' tensors: that of so many in double precision.

        ``None`` for three more than there are models. The result counts as one.
        """
        return None

    @property
    def needed(self) -> str:
        """How many models it needs, in words."""
        return f"at least {self.least}" if self.count is None else str(self.count)

    def accepts(self, count: int) -> bool:
        """Return whether :meth:`fuse` can fuse so many models."""
        return self.count in (None, count) and count >= self.least

    def check_count(self, count: int) -> None:
        """Accept only as many models as :meth:`fuse` can fuse.

        Raises:
            ValueError: Says how many it needs.
        """
        if not self.accepts(count):
            raise ValueError(f"models must be {self.needed} for {self!r}, got {count}")

    @abstractmethod
    def fuse(self, models: Sequence[Model], evaluate: Evaluate | None = None) -> dict[str, Tensor]:
        """Return the fused model; the models are left as they are.

        Args:
            models: At least one; of equal names, shapes and types. Their order is the method's business.
            evaluate: Needed by methods that have an :attr:`objective`.

        Raises:
            ValueError: If the models do not fit one another, or hold entries that are not finite; names the
                tensor.
        """


class TensorwiseMethod(FusionMethod):
    """Base of the policies that fuse one tensor after the other, so that models may exceed the memory."""

    @abstractmethod
    def combine(self, name: str, tensors: list[Tensor]) -> Tensor:
        """Return what becomes of the tensors of one name.

        Args:
            name: Theirs.
            tensors: One of each model, in the order of the models; finite, floating or complex, of one shape
                and type. Where the method is :attr:`entrywise`, they may be parts of the tensors.

        Returns:
            A tensor of that shape and type, computed in at least float32 and rounded once.
        """

    def combined(self, name: str, tensors: list[Tensor]) -> Tensor:
        """Return what :meth:`combine` does.

        Raises:
            ValueError: If an entry of that is too large for the type; names the tensor and the settings.
        """
        fused = self.combine(name, tensors)
        check_result(name, fused, self)
        return fused

    def resolved(self, names: Sequence[str]) -> TensorwiseMethod:
        """Return the method whose :meth:`combine` knows the names of all tensors that it may get.

        To be called once, before the first :meth:`combine`, with the names of floating and complex tensors.

        Raises:
            ValueError: If the method says nothing of one of them; names it.
        """
        return self

    def fuse(self, models: Sequence[Model], evaluate: Evaluate | None = None) -> dict[str, Tensor]:
        self.check_count(len(models))
        return fuse_tensors(models, self.resolved(floating(models[0])).combined)


def score_of(evaluate: Evaluate, model: Model) -> float:
    """Return how good ``evaluate`` says ``model`` is; minus infinity for NaN.

    Raises:
        TypeError: If that is no number.
    """
    score = evaluate(model)
    try:
        score = float(score)
    except (RuntimeError, TypeError, ValueError):
        raise TypeError(f"evaluate must return a number, got {score!r:.80}") from None
    return -math.inf if math.isnan(score) else score


def check_base(base: str | None) -> None:
    """Accept the file of a base, or ``None``; whether it is there is found when it is read.

    Raises:
        TypeError: If it is neither.
        ValueError: If it is an empty text.
    """
    if base is not None:
        checks.text("base", base)


def floating(model: Model) -> list[str]:
    """Return the names of the tensors that are combined, if they differ: floating and complex ones."""
    return [name for name, value in model.items() if value.is_floating_point() or value.is_complex()]


@torch.no_grad()
def fuse_tensors(
    models: Sequence[Model], combine: Callable[[str, list[Tensor]], Tensor]
) -> dict[str, Tensor]:
    """Return the model whose tensors are what ``combine`` makes of the models' tensors of one name.

    A tensor that is the same in all models is taken as it is. So are integer and boolean ones (counters,
    indices, masks), from the last model: their mean means nothing. Tensors that are tied in every model,
    being one in memory, are combined once and stay tied.

    Args:
        models: At least one; of equal names, shapes and types.
        combine: Gets a name and one finite floating or complex tensor of each model, in their order.

    Raises:
        ValueError: As :meth:`FusionMethod.fuse`.
    """
    check_alike(models)
    fused: dict[str, Tensor] = {}
    done: dict[object, Tensor] = {}
    for name in models[0]:
        tensors = [model[name] for model in models]
        place = tuple((t.data_ptr(), t.shape, t.stride(), t.dtype) for t in tensors)
        if place not in done:
            done[place] = _fuse(name, tensors, combine)
        fused[name] = done[place]
    return fused


def _fuse(name: str, tensors: list[Tensor], combine: Combine) -> Tensor:
    if not mixes(tensors):
        return tensors[-1].clone()
    check_numbers(name, tensors)
    # As they are in files, lest a sum over a transposed tensor be rounded otherwise than there.
    return combine(name, [tensor.contiguous() for tensor in tensors])


def check_finite(models: Sequence[Model]) -> None:
    """Accept only models that :func:`fuse_tensors` can combine; a mask may hold infinities, if all have it.

    Raises:
        ValueError: If the models do not fit one another, or what would be combined is not finite; names the
            tensor.
    """
    check_alike(models)
    for name in models[0]:
        tensors = [model[name] for model in models]
        if mixes(tensors):
            check_numbers(name, tensors)


def check_alike(models: Sequence[Model]) -> None:
    """Accept at least one model, and only models of equal names, shapes and types.

    Raises:
        ValueError: Names the first tensor that differs, and how.
    """
    check_names(models)
    for name in models[0]:
        check_same(name, [model[name] for model in models])


def check_names(models: Sequence[Collection[str]], labels: Sequence[str] = ()) -> None:
    """Accept at least one model, and only models of equal names; ``labels`` are what to call the models.

    Raises:
        ValueError: Names the first tensor that is not in all.
    """
    if not models:
        raise ValueError("models must hold at least one model, got none")
    for index, model in enumerate(models[1:], start=1):
        for name in sorted(set(models[0]) ^ set(model)):
            there, absent = (0, index) if name in models[0] else (index, 0)
            raise ValueError(
                f"{name} must be in every model; {label_of(labels, there)} has it, "
                f"{label_of(labels, absent)} has not"
            )


def check_same(name: str, tensors: Sequence[Shaped], labels: Sequence[str] = ()) -> None:
    """Accept only tensors of one shape and type; ``labels`` as in :func:`check_numbers`.

    Raises:
        ValueError: Names the tensor, and how it differs.
    """
    first = tensors[0]
    for index, tensor in enumerate(tensors):
        for what, got, wanted in (
            ("shape", tuple(tensor.shape), tuple(first.shape)),
            ("type", tensor.dtype, first.dtype),
        ):
            if got != wanted:
                raise ValueError(
                    f"{name} must have one {what} in all models, got {wanted} in {label_of(labels, 0)} "
                    f"and {got} in {label_of(labels, index)}"
                )
