"""The names that the command line has for the methods of fusion."""

from __future__ import annotations

import re

from lightning_tricks.cli.cards import cards

__all__ = ["method_name", "method_names", "method_options"]


def method_name(kind: str) -> str:
    """Return the name that the command line has for the method whose class is called so.

    Example:
        >>> method_name("GreedySoup")
        'greedy_soup'
    """
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind).lower()


def method_options() -> dict[str, list[str]]:
    """Return the options of each method by its name; without loading them, which takes a second."""
    methods = [card for card in cards() if card.kind == "method"]
    return {method_name(card.name): [f"--{setting.name}" for setting in card.settings] for card in methods}


def method_names() -> tuple[str, ...]:
    """Return the names of all methods, likewise."""
    return tuple(method_options())
