"""Units of a network in another order: which axes of which tensors go together, and models so permuted.

    W'[i, j] = W[P[i], Q[j]]    for a weight whose rows have the permutation P and whose columns have Q

A spec names a permutation for each axis of each tensor. If the axes on which one unit lies all have the same
one, the network computes the same function after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lightning_tricks.core import checks
from lightning_tricks.core.select import clean_name
from lightning_tricks.core.tensors import Model
from lightning_tricks.fusion.methods import floating

__all__ = [
    "Axis",
    "Permutations",
    "Place",
    "Spec",
    "checked_spec",
    "moved",
    "permuted",
    "places",
    "read_spec",
]

Axis = str | tuple[str, ...] | None
"""The permutation along an axis; several for blocks one after the other; ``None`` for an axis that stays.

An axis that is k times as long as its permutations has k entries for each unit, as a linear layer has after
images were flattened.
"""
Spec = Mapping[str, tuple[Axis, ...] | None]
"""Of each tensor the permutations of its axes; ``None`` for a tensor that stays."""
Permutations = Mapping[str, Tensor]
"""Of each permutation which unit comes to each place, shape (units,)."""


@dataclass(frozen=True)
class Place:
    """Where a permutation acts.

    Attributes:
        name: Of the tensor, in the model.
        axis: Of the tensor.
        start: The first entry of the axis on which it acts.
        units: How many it permutes.
        repeat: How many entries there are for each unit.
    """

    name: str
    axis: int
    start: int
    units: int
    repeat: int

    @property
    def stop(self) -> int:
        """The entry of the axis after the last on which it acts."""
        return self.start + self.units * self.repeat


def checked_spec(value: object, label: str = "spec") -> dict[str, tuple[Axis, ...] | None]:
    """Return a spec that is written with lists or tuples.

    Raises:
        TypeError: If it is none.
        ValueError: If it permutes nothing.

    Example:
        >>> checked_spec({"0.weight": ["hidden", None], "1.weight": [None, ["left", "right"]]})
        {'0.weight': ('hidden', None), '1.weight': (None, ('left', 'right'))}
    """
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise TypeError(
            f"{label} must be a mapping from names of tensors to lists of axes, got {value!r:.80}"
        )
    spec: dict[str, tuple[Axis, ...] | None] = {}
    for name, axes in value.items():
        if axes is not None and not isinstance(axes, list | tuple):
            raise TypeError(f"{label} must have a list of axes, or nothing, for {name}, got {axes!r}")
        spec[name] = None if axes is None else tuple(_axis(label, name, axis) for axis in axes)
    if not any(_names(axis) for axes in spec.values() for axis in axes or ()):
        raise ValueError(f"{label} must name at least one permutation, got {value!r:.80}")
    return spec


def _axis(label: str, name: str, axis: object) -> Axis:
    if axis is None or (isinstance(axis, str) and axis):
        return axis
    if isinstance(axis, list | tuple) and axis and all(isinstance(block, str) and block for block in axis):
        return tuple(axis)
    raise TypeError(f"{label} must have names of permutations, or nothing, for {name}, got {axis!r}")


def read_spec(path: str | Path) -> dict[str, tuple[Axis, ...] | None]:
    """Return the spec in a file of YAML or JSON.

    Raises:
        FileNotFoundError: If it is not there.
        TypeError: If it holds none.
        ValueError: If it is neither YAML nor JSON.
    """
    import yaml  # type: ignore[import-untyped]  # jsonargparse brings it, without types

    try:
        found = yaml.safe_load(Path(path).read_text("utf-8"))  # JSON is YAML
    except FileNotFoundError:
        raise FileNotFoundError(f"spec must be a file that is there, got {str(path)!r}") from None
    except (yaml.YAMLError, OSError, ValueError) as error:
        raise ValueError(f"spec must be a file of YAML or JSON, got {str(path)!r}: {error}") from None
    return checked_spec(found, str(path))


def _names(axis: Axis) -> tuple[str, ...]:
    return (axis,) if isinstance(axis, str) else axis or ()


def places(spec: Spec, model: Model) -> dict[str, list[Place]]:
    """Return where each permutation acts in ``model``.

    Raises:
        ValueError: If the spec does not fit the model: a floating or complex tensor that it leaves out, a
            name or a number of axes that the model does not have, an axis that its permutations do not fill.
    """
    names = {clean_name(name): name for name in model}
    for name in spec:
        if clean_name(name) not in names:
            near = ", ".join(map(repr, checks.nearest(name, names) or [*names][:3]))
            raise ValueError(f"spec must name tensors of the models, got {name!r}; nearest: {near}")
    known = {names[clean_name(name)]: axes for name, axes in spec.items()}
    if missing := [name for name in floating(model) if name not in known and model[name].ndim]:
        raise ValueError(
            f"spec must name every tensor, but leaves out {checks.listed(missing)}; null for one that stays"
        )
    lengths = dict(_lengths(known, model))
    sizes = _sizes(lengths)
    found: dict[str, list[Place]] = {permutation: [] for permutation in sizes}
    for (name, axis, blocks), length in lengths.items():
        repeat, rest = divmod(length, sum(sizes[block] for block in blocks))
        if rest or not repeat:
            units = " + ".join(f"{sizes[block]} of {block}" for block in blocks)
            raise ValueError(f"spec must fit {name}, whose axis {axis} is {length} long, got {units}")
        start = 0
        for block in blocks:
            found[block].append(Place(name, axis, start, sizes[block], repeat))
            start = found[block][-1].stop
    return found


_Where = tuple[str, int, tuple[str, ...]]


def _lengths(known: Spec, model: Model) -> Iterator[tuple[_Where, int]]:
    """Yield how long each axis is that is permuted."""
    for name, axes in known.items():
        shape = tuple(model[name].shape)
        if axes is not None and len(axes) != len(shape):
            raise ValueError(f"spec must name {len(shape)} axes for {name} of shape {shape}, got {axes!r}")
        for axis, permutations in enumerate(axes or ()):
            if blocks := _names(permutations):
                yield (name, axis, blocks), shape[axis]


def _sizes(lengths: Mapping[_Where, int]) -> dict[str, int]:
    """Return how many units each permutation has: as many as the shortest axis leaves to it."""
    sizes: dict[str, int] = {}
    while True:
        found: dict[str, int] = {}
        for (_, _, blocks), length in lengths.items():
            unknown = [block for block in blocks if block not in sizes]
            if len(unknown) == 1:
                rest = length - sum(sizes[block] for block in blocks if block in sizes)
                found[unknown[0]] = min(rest, found.get(unknown[0], rest))
        if not found:
            break
        sizes |= found
    for name, axis, blocks in lengths:
        for block in blocks:
            if sizes.get(block, 0) < 1:
                raise ValueError(
                    f"spec must tell how many units {block} has, but {name}, axis {axis}, does not"
                )
    return sizes


@torch.no_grad()
def permuted(model: Model, spec: Spec, permutations: Permutations) -> dict[str, Tensor]:
    """Return ``model`` with its units in another order.

    Args:
        model: Left as it is; tensors that are tied stay tied.
        spec: What each permutation acts on.
        permutations: Some or all of those of the spec; the others leave their axes.

    Raises:
        ValueError: If the spec does not fit the model, or a permutation is none of it, or no permutation.

    Example:
        >>> from torch import tensor
        >>> model = {"a": tensor([[1.0], [2.0]]), "b": tensor([[3.0, 4.0]])}
        >>> permuted(model, {"a": ("P", None), "b": (None, "P")}, {"P": tensor([1, 0])})
        {'a': tensor([[2.],
                [1.]]), 'b': tensor([[4., 3.]])}
    """
    found = places(spec, model)
    moves: dict[str, list[tuple[Place, Tensor]]] = {}
    for name, order in permutations.items():
        checks.one_of("every permutation", name, tuple(found))
        if order.shape != (units := (found[name][0].units,)) or not _is_order(order):
            raise ValueError(
                f"permutation {name} must hold each of 0 to {units[0] - 1} once, got {order!r:.80}"
            )
        for place in found[name]:
            moves.setdefault(place.name, []).append((place, order))
    done: dict[object, tuple[object, Tensor]] = {}
    result: dict[str, Tensor] = {}
    for name, value in model.items():
        how = [(place.axis, place.start, place.repeat, id(order)) for place, order in moves.get(name, [])]
        memory = (value.data_ptr(), value.shape, value.stride(), value.dtype) if value.numel() else name
        before, other = done.setdefault(memory, (how, moved(value, moves.get(name, []))))
        if before != how:
            raise ValueError(f"spec must have the same axes for {name} as for the tensor that it is tied to")
        result[name] = other
    return result


def _is_order(order: Tensor) -> bool:
    return torch.equal(order.sort().values, torch.arange(len(order)))


def moved(tensor: Tensor, moves: list[tuple[Place, Tensor]]) -> Tensor:
    """Return ``tensor`` with its entries moved as each place says by its permutation."""
    for place, order in moves:
        index = torch.arange(tensor.shape[place.axis])
        part = index[place.start : place.stop]
        part.copy_(part.view(place.units, place.repeat)[order].view(-1))
        # By bytes, because types of 8 bits cannot be indexed.
        plain = tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor
        tensor = plain.index_select(place.axis, index.to(tensor.device)).view(tensor.dtype)
    return tensor
