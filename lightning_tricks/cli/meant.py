"""What somebody means by a word: an abbreviation of the field, another library's name, a part of a name."""

from __future__ import annotations

import re

from lightning_tricks.cli.cards import Card, cards
from lightning_tricks.core import checks

__all__ = ["cards_meant", "names_meant"]


def names_meant(word: str) -> list[str]:
    """Return up to three names that may be meant by ``word``, which is none, the likeliest first.

    Example:
        >>> names_meant("EMA"), names_meant("SAM"), names_meant("DropPath")
        (['EMAWeights', 'PostHocEMA', 'synthesize_ema'], ['SharpnessAware'], ['DropoutSchedule'])
    """
    names = [card.name for card in cards()]
    whole, phrase = "".join(_words(word)), f" {' '.join(_words(word))} "
    alike = [name for name in names if "".join(_words(name)) == whole]
    parts = [name for name in names if phrase in f" {' '.join(_words(name))} "]
    holding = [name for name in names if whole and whole in "".join(_words(name))]
    told = [card.name for card in cards_meant(word)]
    return (alike or parts or told or holding or checks.nearest(word, names))[:3]


def cards_meant(word: str) -> list[Card]:
    """Return the cards with ``word``, or what it abbreviates, in a title; if there are none, in the text."""
    words = _words(word)
    if not words:
        return []
    short = "".join(words)

    def tells(text: str) -> bool:
        return re.search(rf" {' '.join(words)}s? ", f" {' '.join(_words(text))} ") is not None

    def abbreviates(text: str) -> bool:
        initials = "".join(each[0] for each in _words(text))
        return 1 < len(short) < 7 and initials.startswith(short)

    def in_title(card: Card) -> bool:
        titles = [card.subject, card.parts.summary, *(each.title for each in card.references)]
        return any(tells(title) or abbreviates(title) for title in titles)

    def in_text(card: Card) -> bool:
        return any(map(tells, (card.parts.text, card.formula, *card.parts.bullets.values())))

    return [card for card in cards() if in_title(card)] or [card for card in cards() if in_text(card)]


def _words(text: str) -> list[str]:
    """Return the words of ``text``, those within a name too, in small letters."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", text)]
