"""A method whose numbers change with depth: one at the first layer, another at the last.

    setting(layer) = the points given, joined by straight lines over the layers,    layer = 0, ..., L - 1

As mergekit's lists of values ("gradients"): of n points, point k stands at layer k (L - 1) / (n - 1).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_tricks.core import checks
from lightning_tricks.core.select import clean_name, matches
from lightning_tricks.fusion.by_names import ByNames
from lightning_tricks.fusion.layerwise import Assigned
from lightning_tricks.fusion.methods import TensorwiseMethod
from lightning_tricks.fusion.probe import needs_probe

__all__ = ["OverDepth", "at_depth", "depths"]


def depths(names: Sequence[str], layers: Sequence[str] | None = None) -> dict[str, float]:
    """Return how deep the layer of each tensor is, from 0 for the first to 1 for the last.

    Layers are in the order of the numbers in their names, whatever the order of ``names``.

    Args:
        names: Of tensors.
        layers: Patterns of the layers' names, as in a shell, first layers first; ``None`` for the modules
            with the first number of a name.

    Raises:
        ValueError: If a tensor is in no layer; names it.

    Example:
        >>> depths(["blocks.2.bias", "blocks.10.bias", "blocks.0.bias", "blocks.0.weight"])
        {'blocks.2.bias': 0.5, 'blocks.10.bias': 1.0, 'blocks.0.bias': 0.0, 'blocks.0.weight': 0.0}
    """
    found = {name: _layer(clean_name(name), layers) for name in names}
    if unknown := [name for name, layer in found.items() if layer is None]:
        wanted = "with a number in its name" if layers is None else f"of {list(layers)!r}"
        raise ValueError(
            f"layers must tell the layer of every tensor, but {checks.listed(unknown)} are in none {wanted}: "
            "use Layerwise for them"
        )
    order = sorted({layer for layer in found.values() if layer is not None}, key=_key)
    last = max(len(order) - 1, 1)
    return {name: order.index(layer) / last for name, layer in found.items() if layer is not None}


def _layer(name: str, layers: Sequence[str] | None) -> tuple[int, str] | None:
    """Return the layer that holds a tensor, with which pattern of its names that is."""
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        module = ".".join(parts[:length])
        if layers is None and parts[length - 1].isdecimal():
            return 0, module
        for place, pattern in enumerate(layers or ()):
            if matches(pattern, module):
                return place, module
    return None


def _key(layer: tuple[int, str]) -> tuple[int, list[tuple[int, str]]]:
    place, name = layer
    return place, [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def at_depth(methods: Sequence[TensorwiseMethod], depth: float) -> TensorwiseMethod:
    """Return the method whose numbers lie between those of ``methods`` that are next to ``depth``.

    Args:
        methods: At least two of one kind, which differ in numbers alone; at equal distances from depth 0
            to depth 1.
        depth: In [0, 1].

    Raises:
        ValueError: If they differ in something else.

    Example:
        >>> from lightning_tricks import Slerp
        >>> at_depth([Slerp(0.0), Slerp(0.5), Slerp(0.7)], 0.75)
        Slerp(t=0.6)
    """
    place = depth * (len(methods) - 1)
    index = min(int(place), len(methods) - 2)
    first, second = methods[index : index + 2]
    settings: dict[str, Any] = {}
    for entry in dataclasses.fields(first):  # type: ignore[arg-type]  # policies are dataclasses
        one, other = getattr(first, entry.name), getattr(second, entry.name)
        if one != other:
            settings[entry.name] = _between(entry.name, one, other, place - index)
    return dataclasses.replace(first, **settings)  # type: ignore[type-var]  # likewise


def _between(name: str, one: Any, other: Any, share: float) -> Any:
    if isinstance(one, float | int) and isinstance(other, float | int) and not isinstance(one, bool):
        return one if share == 0 else other if share == 1 else (1 - share) * one + share * other
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        return tuple(_between(name, *pair, share) for pair in zip(one, other, strict=True))
    raise ValueError(f"methods must differ in numbers alone, got {one!r} and {other!r} for {name}")


def _patterns(layers: object) -> tuple[str, ...]:
    if not isinstance(layers, list | tuple) or not layers:
        raise TypeError(f"layers must be a list of patterns of names, got {layers!r}")
    return tuple(checks.text("every pattern of layers", pattern) for pattern in layers)


@dataclass(frozen=True)
class OverDepth(ByNames):
    """Fuse each layer by a method whose numbers are interpolated over the depth (:func:`at_depth`).

    Tensors outside of all layers are refused: ``Layerwise`` gives them a method of their own.

    Args:
        methods: At least two of one kind, which differ in numbers alone: for the first layer, the last, and
            at equal distances between.
        layers: Patterns of the layers' names, first layers first; ``None`` for the modules with the first
            number of a name.

    Example:
        >>> from lightning_tricks import Average, Layerwise, Slerp
        >>> t = OverDepth((Slerp(0.0), Slerp(0.5), Slerp(1.0)))
        >>> Layerwise({"blocks": t, "*": Average()}).count
        2
    """

    methods: tuple[TensorwiseMethod, ...]
    layers: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.methods, list | tuple) or len(self.methods) < 2:
            raise TypeError(f"methods must be at least two methods, got {self.methods!r}")
        object.__setattr__(self, "methods", tuple(self.methods))
        for method in self.methods:
            if not isinstance(method, TensorwiseMethod) or type(method) is not type(self.methods[0]):
                raise TypeError(
                    "methods must be of one kind that fuses tensor by tensor, such as Slerp(0.5), got "
                    f"{self.methods!r}"
                )
        if any(map(needs_probe, self.methods)):
            raise ValueError(f"methods must not look at data by themselves, got {self.methods!r}")
        if self.layers is not None:
            object.__setattr__(self, "layers", _patterns(self.layers))
        for interval in range(len(self.methods) - 1):
            at_depth(self.methods, (interval + 0.5) / (len(self.methods) - 1))

    @property
    def base(self) -> str | None:
        return self.methods[0].base

    @property
    def count(self) -> int | None:
        return self.methods[0].count

    @property
    def least(self) -> int:
        return max(method.least for method in self.methods)

    @property
    def entrywise(self) -> bool:
        return all(method.entrywise for method in self.methods)

    def resolved(self, names: Sequence[str]) -> TensorwiseMethod:
        found = depths(names, self.layers)
        for place, pattern in enumerate(self.layers or ()):
            layers = (_layer(clean_name(name), self.layers) for name in names)
            if all(layer is None or layer[0] != place for layer in layers):
                raise ValueError(f"layers must match modules, got {pattern!r}, which matches none")
        own = {name: (at_depth(self.methods, depth).resolved([name]), 0) for name, depth in found.items()}
        return Assigned(self, own)
