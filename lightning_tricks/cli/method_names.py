"""The names that the command line has for the methods of fusion."""

from __future__ import annotations

import re

from lightning_tricks.cli.cards import cards

__all__ = ["method_name", "method_names"]


def method_name(kind: str) -> str:
    """Return the name that the command line has for the method whose class is called so.

    Example:
        >>> method_name("GreedySoup")
        'greedy_soup'
    """
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind).lower()


def method_names() -> tuple[str, ...]:
    """Return the names of all methods; without loading them, which takes a second."""
    return tuple(method_name(card.name) for card in cards() if card.kind == "method")
