"""Checkpoints with something wrong in them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Damage", "Marker", "contents", "damaged", "damages"]

MISSING = "missing"
_OF: dict[type, list[Any]] = {
    bool: [None, "x", 0.5, [], {}],
    int: [None, "x", -1, 0.5, math.nan, 2**70, [], {}, torch.ones(2)],
    float: [None, "x", math.nan, math.inf, [], {}, torch.ones(2)],
    str: [None, 5, [], {}],
    list: [None, "x", 5, {}, [None], [[]], ["x"]],
    dict: [None, "x", 5, [], [None]],
    type(None): ["x", [], {}],
}


class Damage(NamedTuple):
    """A place in nested dicts and lists, and what stands there instead."""

    place: tuple[Any, ...]
    value: Any

    def __repr__(self) -> str:
        return f"{'/'.join(map(str, self.place))} = {self.value!r}"


def damages(tree: Any, place: tuple[Any, ...]) -> Iterator[Damage]:
    """Yield what can be wrong with a type, a key or a shape at ``place`` of ``tree`` and below."""
    value = at(tree, place)
    yield Damage(place, MISSING)
    if isinstance(value, Tensor):
        wrong = [None, 1.0, [], value.new_zeros(*value.shape, 2), value.new_zeros(0)]
    else:
        wrong = _OF[dict if isinstance(value, dict) else type(value)]
    yield from (Damage(place, other) for other in wrong)
    if isinstance(value, dict):
        yield Damage((*place, "unknown"), 1)
    for key in value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0):
        yield from damages(tree, (*place, key))


def at(tree: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        tree = tree[key]
    return tree


def damaged(tree: Mapping[str, Any], *wrong: Damage) -> dict[str, Any]:
    """Return a copy of ``tree`` with ``wrong`` in it; a place that is gone with another stays so."""
    copy: dict[str, Any] = deepcopy(dict(tree))
    for place, value in wrong:
        try:
            holder = at(copy, place[:-1])
            if isinstance(value, str) and value == MISSING:
                del holder[place[-1]]
            else:
                holder[place[-1]] = value
        except (KeyError, IndexError, TypeError):
            continue
    return copy


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files under ``folder``."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Marker:
    """Makes a file when it is unpickled, as a hostile checkpoint would do worse."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)
