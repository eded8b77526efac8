"""Which techniques each arm of an ablation has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

__all__ = ["Names", "arms", "arms_of", "rotated"]


Names = tuple[str, ...]
T = TypeVar("T")


def arms_of(names: Sequence[str], name: str) -> tuple[Names, Names]:
    """Return the arm of ``name`` alone, and that of all ``names`` but it.

    Example:
        >>> arms_of(["a", "b", "c"], "b")
        (('b',), ('a', 'c'))
    """
    return (name,), tuple(each for each in names if each != name)


def arms(names: Sequence[str]) -> dict[Names, str]:
    """Return what each arm is called: none of ``names``, all, all but one, and each alone.

    Arms that have the same techniques are one.

    Example:
        >>> list(arms(["a", "b", "c"]).values())
        ['none', 'all', 'without a', 'without b', 'without c', 'only a', 'only b', 'only c']
        >>> arms(["a"])
        {(): 'none', ('a',): 'all'}
    """
    found: dict[Names, str] = {(): "none", tuple(names): "all"}
    for name in names:
        found.setdefault(arms_of(names, name)[1], f"without {name}")
    for name in names:
        found.setdefault(arms_of(names, name)[0], f"only {name}")
    return found


def rotated(values: Sequence[T], turns: int) -> list[T]:
    """Return ``values`` from another one on, after which the first ones come.

    Example:
        >>> rotated("abc", 4)
        ['b', 'c', 'a']
    """
    first = turns % len(values)
    return [*values[first:], *values[:first]]
