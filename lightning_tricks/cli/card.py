"""``lightning-tricks card``: all that is said of one name, to be read in a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import lightning_tricks
from lightning_tricks.cli.cards import Card, card_of
from lightning_tricks.cli.meant import names_meant
from lightning_tricks.cli.references import plain_text

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["known", "show_card"]


def known(argument: str, name: str) -> str:
    """Return ``name`` if the package offers it.

    Raises:
        ValueError: If it does not; with names that may be meant.

    Example:
        >>> known("name", "EMA")
        Traceback (most recent call last):
        ValueError: name must be one that lightning-tricks list shows, got 'EMA'; did you mean ...
    """
    if name in lightning_tricks.__all__:
        return name
    close = names_meant(name)
    meant = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise ValueError(f"{argument} must be one that lightning-tricks list shows, got {name!r}{meant}")


def show_card(name: str, *, as_json: bool) -> None:
    """Print the card of ``name``."""
    card = card_of(name)
    if as_json:
        print(json.dumps(card.plain(), indent=1))
        return
    from lightning_tricks.cli.terminal import terminal

    console = terminal()
    for part in _rendered(card):
        console.print(part, soft_wrap=getattr(part, "no_wrap", None) is True)


def _rendered(card: Card) -> Iterator[RenderableType]:
    from rich.table import Table

    from lightning_tricks.cli.terminal import spans

    yield spans(f"**{card.name}**, a {card.kind} of the family {card.family}\n")
    yield spans(card.parts.summary)
    yield from _blocks(card.parts.text)
    bullets = Table(box=None, show_header=False, padding=(1, 2, 0, 0))
    bullets.add_column(style="bold cyan", no_wrap=True)
    bullets.add_column(overflow="fold")
    for name, said in card.parts.bullets.items():
        bullets.add_row(name, spans(said))
    if card.parts.bullets:
        yield bullets
    sections: dict[str, list[RenderableType]] = {
        "Settings": list(_settings(card)),
        "Example": list(_blocks(card.parts.example)),
        "Formula": list(_blocks(card.formula)),
        "References": [spans(plain_text(reference)) for reference in card.references],
    }
    for title, lines in sections.items():
        if lines:
            yield spans(f"\n**{title}**")
            yield from lines
    yield spans(f"\n`from lightning_tricks import {card.name}`")


def _settings(card: Card) -> Iterator[RenderableType]:
    from rich.padding import Padding

    from lightning_tricks.cli.terminal import spans

    for setting in card.settings:
        default = "" if setting.default is None else f" = {setting.default}"
        yield spans(f"`{setting.name}: {setting.kind}{default}`")
        if setting.about:
            yield Padding(spans(setting.about), (0, 0, 0, 4))


def _blocks(text: str) -> Iterator[RenderableType]:
    """Yield the paragraphs of ``text``, with code and formulae as they stand."""
    from lightning_tricks.cli.terminal import as_it_stands, spans

    for block in text.split("\n\n") if text else ():
        yield ""
        yield as_it_stands(block) if block.startswith(("    ", ">>> ")) else spans(" ".join(block.split()))
