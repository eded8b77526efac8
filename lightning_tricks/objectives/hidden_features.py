"""Pairs of layers, of a student and of its teachers, whose outputs are to be equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_tricks.core import checks
from lightning_tricks.core.select import clean_name, select_layers
from lightning_tricks.objectives.distillation_loss import feature_loss
from lightning_tricks.objectives.teachers import Teacher

__all__ = [
    "PROJECTIONS",
    "HiddenFeatures",
    "Projection",
    "matched_loss",
    "outermost_layers",
    "projection_for",
]

PROJECTIONS = "feature_projections"
"""Under which name a student holds its projections, which no pattern matches."""


class Projection(nn.Module):
    """A linear map along one dimension: of channels, it is a convolution of size 1.

    Args:
        width: Entries of the dimension in what it gets.
        into: Entries of the dimension in what it returns.
        dim: The dimension, from 1.

    Example:
        >>> Projection(8, 16, dim=1)(torch.zeros(2, 8, 5, 5)).shape
        torch.Size([2, 16, 5, 5])
    """

    def __init__(self, width: int, into: int, *, dim: int) -> None:
        """Make the map, as torch makes a linear layer."""
        super().__init__()
        self.linear: nn.Linear = nn.Linear(width, into)
        self.dim: int = dim

    def forward(self, features: Tensor) -> Tensor:
        """Return the projected features."""
        projected: Tensor = self.linear(features.movedim(self.dim, -1))
        return projected.movedim(-1, self.dim)


def projection_for(student: Tensor, teacher: Tensor, *, names: str) -> nn.Module:
    """Return what brings features of one shape to another: nothing, or a projection of their width.

    Args:
        student: Features, shape (n, ...).
        teacher: Of as many samples.
        names: What these are called, for errors.

    Raises:
        ValueError: If shapes differ in more than one dimension, which is the width, or in the samples.
    """
    if student.shape == teacher.shape:
        return nn.Identity()
    shapes = list(zip(student.shape, teacher.shape, strict=False))
    other = [dim for dim, (own, theirs) in enumerate(shapes) if own != theirs]
    if student.ndim != teacher.ndim or len(other) != 1 or other == [0]:
        raise ValueError(
            f"hidden features must differ in width alone, got shapes {tuple(student.shape)} and "
            f"{tuple(teacher.shape)} of {names}"
        )
    return Projection(*shapes[other[0]], dim=other[0])


def matched_loss(taken: Sequence[tuple[str, Tensor, Tensor]], projections: nn.ModuleList | None) -> Tensor:
    """Return the mean of each pair's :func:`~lightning_tricks.objectives.distillation_loss.feature_loss`.

    Args:
        taken: Names of each pair, the student's features and the teacher's.
        projections: For each pair, what the student's go through; ``None`` for nothing.

    Raises:
        ValueError: If shapes differ.
    """
    losses = []
    for index, (names, own, theirs) in enumerate(taken):
        projected = own if projections is None else projections[index](own)
        if projected.shape != theirs.shape:
            raise ValueError(
                f"hidden features must have one shape, got {tuple(projected.shape)} and "
                f"{tuple(theirs.shape)} of {names}: call self.build_projections(inputs) at the end of "
                "__init__"
            )
        losses.append(feature_loss(projected, theirs))
    return torch.stack(losses).mean()


def outermost_layers(module: nn.Module, pattern: str, *, name: str) -> dict[str, nn.Module]:
    """Return the layers that ``pattern`` matches, without those within others of them.

    Args:
        module: Searched with all its children.
        pattern: One of :mod:`~lightning_tricks.core.select`.
        name: What the user calls the pattern, for errors.

    Raises:
        ValueError: If there is none; lists the nearest names.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.ReLU()))
        >>> list(outermost_layers(net, "*", name="a pattern"))
        ['0', '1']
    """
    own = {module, *getattr(module, PROJECTIONS, nn.ModuleList()).modules()}
    found = select_layers(module, pattern, lambda layer: layer not in own, what="a layer", name=name)
    outer = [path for path in found if not any(path.startswith(f"{other}.") for other in found)]
    # Of a layer and its wrapper, which go by one name, the wrapper: compiled code may see no hook within it.
    named = {
        clean_name(raw): layer for raw, layer in reversed([*module.named_modules(remove_duplicate=False)])
    }
    return {path: named[path] for path in outer}


@dataclass(frozen=True)
class _Pair:
    names: str
    student: nn.Module
    teacher: nn.Module


class HiddenFeatures:
    """Watches layers while passes go through them.

    Args:
        student: The student.
        teachers: Its teachers, with the features that each has to match.

    Raises:
        ValueError: If a pattern matches no layer, or its partner another number of them.
    """

    def __init__(self, student: nn.Module, teachers: Sequence[Teacher]) -> None:
        """Find the layers; :meth:`open` begins to watch them."""
        self._pairs = [pair for teacher in teachers for pair in _pairs(student, teacher)]
        self._seen: dict[tuple[str, int], Tensor] = {}
        self._hooks: list[RemovableHandle] = []

    def open(self) -> None:
        """Begin to keep the layers' outputs, of the student only where gradients are recorded."""
        if self._hooks:
            return
        for index, pair in enumerate(self._pairs):
            for side, layer in (("student", pair.student), ("teacher", pair.teacher)):
                self._hooks.append(layer.register_forward_hook(self._keeper(side, index)))

    def _keeper(self, side: str, index: int) -> Any:
        def keep(_: nn.Module, inputs: Any, output: Any) -> None:
            if side == "teacher" or torch.is_grad_enabled():
                self._seen[side, index] = output[0] if isinstance(output, tuple) else output

        return keep

    def taken(self) -> list[tuple[str, Tensor, Tensor]]:
        """Return each pair's names and what its layers returned since this was called last.

        Raises:
            ValueError: If a layer did not run, or returned no tensor.
        """
        seen, self._seen = self._seen, {}
        found = []
        for index, pair in enumerate(self._pairs):
            both = [seen.get((side, index)) for side in ("student", "teacher")]
            for side, output in zip(("student", "teacher"), both, strict=True):
                if not isinstance(output, Tensor):
                    raise ValueError(
                        f"layers of features must run in each step and return a tensor, got "
                        f"{type(output).__name__} of the {side}'s in {pair.names}; of what is compiled, name "
                        "the whole"
                    )
            found.append((pair.names, *both))
        return found  # type: ignore[return-value]  # they are tensors

    def close(self) -> None:
        """Leave the layers alone."""
        while self._hooks:
            self._hooks.pop().remove()
        self._seen = {}


def _pairs(student: nn.Module, teacher: Teacher) -> list[_Pair]:
    pairs = []
    for here, there in teacher.features.items():
        own = outermost_layers(student, here, name="a pattern of the student's features")
        theirs = outermost_layers(teacher.network, there, name="a pattern of a teacher's features")
        if len(own) != len(theirs):
            names = [checks.listed(list(found)) for found in (own, theirs)]
            raise ValueError(
                f"patterns of features must match equally many layers, got {len(own)} for {here!r} "
                f"({names[0]}) and {len(theirs)} for {there!r} ({names[1]})"
            )
        for (name, layer), (other, their) in zip(own.items(), theirs.items(), strict=True):
            pairs.append(_Pair(f"{name!r} and {other!r}", layer, their))
    return pairs
