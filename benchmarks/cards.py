"""The table of techniques, from their cards: ``python -m benchmarks.cards`` writes it into the README."""

from __future__ import annotations

from pathlib import Path

from benchmarks.readme import replace_table
from lightning_tricks.cli.cards import cards, families

__all__ = ["README", "table_of_techniques"]

README = Path(__file__).parents[1] / "README.md"


def table_of_techniques() -> str:
    """Return a row for each technique and mixin, under its family: the first sentence of its card."""
    lines = ["| technique | in a sentence |", "|---|---|"]
    found = [card for card in cards() if card.kind in {"technique", "mixin"}]
    for family, about in families().items():
        rows = [f"| `{card.name}` | {card.parts.summary} |" for card in found if card.family == family]
        lines += [f"| **{family}** | *{about}* |", *rows] if rows else []
    return "\n".join(lines)


if __name__ == "__main__":
    replace_table(README, "techniques", table_of_techniques())
