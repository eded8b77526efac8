"""``lightning-tricks list``: what there is, by family, with a sentence each."""

from __future__ import annotations

import json
from dataclasses import dataclass

from lightning_tricks.cli.cards import Card, cards, families
from lightning_tricks.cli.meant import cards_meant
from lightning_tricks.core import checks

__all__ = ["Listing", "show_list"]


@dataclass(frozen=True)
class Listing:
    """What to list.

    Args:
        word: What must stand in name, kind, family or sentence, or if nothing has it there, in the card, in
            whatever case; ``None`` for all.
        json: Whether to print JSON.

    Raises:
        ValueError: If it stands nowhere.
    """

    word: str | None = None
    json: bool = False

    def __post_init__(self) -> None:
        """Look for the word."""
        if self.word is not None:
            checks.text("word", self.word)
        if not self.found():
            every = {word for card in cards() for word in (card.name, card.kind, card.family)}
            close = checks.nearest(self.word or "", sorted(every), count=1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"word must stand in a name, a kind, a family or a card, got {self.word!r}{meant}"
            )

    def found(self) -> list[Card]:
        """Return the cards in which the word stands."""
        word = (self.word or "").lower()
        every = cards()
        exact = [card for card in every if word in (card.kind, card.family)]
        named = [card for card in every if word in f"{card.name} {card.parts.summary}".lower()]
        return exact or named or cards_meant(word)


def show_list(listing: Listing) -> None:
    """Print what is to be listed."""
    found = listing.found()
    if listing.json:
        plain = [
            {"name": each.name, "kind": each.kind, "family": each.family, "summary": each.parts.summary}
            for each in found
        ]
        print(json.dumps(plain, indent=1))
        return
    from rich.table import Table

    from lightning_tricks.cli.terminal import spans, terminal

    console = terminal()
    names = max(len(each.name) for each in found)
    kinds = max(len(each.kind) for each in found)
    for family, about in families().items():
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(min_width=names, no_wrap=True, style="bold")
        table.add_column(min_width=kinds, no_wrap=True, style="dim")
        table.add_column(overflow="fold")
        for each in found:
            if each.family == family:
                table.add_row(each.name, each.kind, spans(each.parts.summary))
        if table.row_count:
            console.print(f"\n{family}: {about}", style="bold cyan")
            console.print(table)
    print("\nlightning-tricks card NAME tells all of one.")
