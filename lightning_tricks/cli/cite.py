"""``lightning-tricks cite``: the papers behind names, or the library itself, for a bibliography."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import lightning_tricks
from lightning_tricks.cli.card import known
from lightning_tricks.cli.cards import card_of
from lightning_tricks.cli.references import Reference, bibtex, entry, escaped, plain_text

__all__ = ["Citation", "show_citation"]


@dataclass(frozen=True)
class Citation:
    """What to cite.

    Args:
        names: What the package offers; none for the package itself.
        text: Whether to print sentences.
        json: Whether to print JSON.

    Raises:
        ValueError: If a name is unknown or has no reference.
    """

    names: list[str] = field(default_factory=list)
    text: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        """Check the names."""
        if self.text and self.json:
            raise ValueError("--text and --json must not go together")
        for name in self.names:
            card = card_of(known("name", name))
            if not card.references:
                raise ValueError(
                    f"name must be of something with a paper behind it, got {name!r}, which has none"
                )

    def references(self) -> list[Reference]:
        """Return the references of all names, each once."""
        found: dict[str, Reference] = {}
        for name in self.names:
            for reference in card_of(name).references:
                found.setdefault(reference.url or reference.title, reference)
        return list(found.values())


def show_citation(citation: Citation) -> None:
    """Print what is to be cited."""
    references = citation.references()
    if not references:
        print(_of_library(citation))
    elif citation.json:
        print(json.dumps([vars(reference) for reference in references], indent=1))
    else:
        print("\n".join(map(plain_text, references)) if citation.text else bibtex(references))


def _of_library(citation: Citation) -> str:
    about = (lightning_tricks.__doc__ or "").partition("\n")[0].removesuffix(".")
    title, version = f"{lightning_tricks.__name__}: {about}", lightning_tricks.__version__
    if citation.json:
        return json.dumps([{"title": title, "version": version}], indent=1)
    if citation.text:
        return f'"{title}", version {version}.'
    names = {"author": f"{{{escaped(_AUTHORS)}}}", "title": f"{{{escaped(title)}}}"}
    return entry("lightning_tricks", "software", {**names, "version": version, "year": _YEAR})


_AUTHORS, _YEAR = "The lightning_tricks contributors", "2026"
