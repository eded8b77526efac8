"""Groups of units that come into another order together: joined, split and fixed as more is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

__all__ = ["Channels", "fix", "join", "leaves"]


@dataclass(eq=False)
class Channels:
    """Units of a network that may come into any order, if all tensors on them do.

    Attributes:
        name: Of the layer that makes them.
        size: How many.
        fixed: Whether they must stay, since something outside of the network knows their order.
        parts: What they turned out to be, one after the other; empty while they are one.
        age: How many were found before them; of two that turn out to be one the first gives the name.
    """

    name: str
    size: int
    fixed: bool = False
    parts: tuple[Channels, ...] = ()
    age: int = field(default_factory=count().__next__)

    def become(self, *parts: Channels) -> None:
        """Be ``parts`` from now on."""
        self.parts = parts
        if self.fixed:
            fix(parts)


Blocks = Sequence[Channels]


def leaves(blocks: Blocks) -> tuple[Channels, ...]:
    """Return what ``blocks`` have turned out to be."""
    return tuple(leaf for each in blocks for leaf in (leaves(each.parts) if each.parts else (each,)))


def fix(blocks: Blocks) -> None:
    """Let ``blocks`` stay as they are."""
    for leaf in leaves(blocks):
        leaf.fixed = True


def join(first: Blocks, second: Blocks) -> None:
    """Let two rows of blocks have the same order; a block that meets several smaller ones is split into them.

    Raises:
        ValueError: If there are not as many units in both.

    Example:
        >>> wide, narrow, new = Channels("wide", 6), Channels("narrow", 4), Channels("new", 2)
        >>> join([wide], [narrow, new])
        >>> [leaf.name for leaf in leaves([wide])]
        ['narrow', 'new']
    """
    sizes = [sum(leaf.size for leaf in leaves(blocks)) for blocks in (first, second)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"{sizes[0]} and {sizes[1]} units cannot be joined")
    left, right = list(leaves(first)), list(leaves(second))
    while left:
        one, other = left.pop(0), right.pop(0)
        if one.size < other.size:
            rest = Channels(f"{other.name}.rest", other.size - one.size)
            other.become(one, rest)
            right.insert(0, rest)
        elif one.size > other.size:
            rest = Channels(f"{one.name}.rest", one.size - other.size)
            one.become(other, rest)
            left.insert(0, rest)
        elif one is not other:
            older, younger = sorted((one, other), key=lambda each: each.age)
            younger.become(older)
        left, right = list(leaves(left)), list(leaves(right))
