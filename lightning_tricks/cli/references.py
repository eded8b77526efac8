"""The papers that a file names as its sources, as data, as BibTeX and as plain text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Reference", "bibtex", "plain_text", "references_in"]

_NAME = r"[A-Z][\w'-]*(?: [A-Z][\w'-]*)*"
_ENTRY = re.compile(
    rf'(?P<who>{_NAME}(?:, {_NAME})*(?: and {_NAME})?)(?P<others> et al\.)?, "(?P<title>[^"]+)"'
    r"(?:, (?P<year>\d{4})\b)?"
)
_URL = re.compile(r"https?://[^\s;,]*[^\s;,.)]")


@dataclass(frozen=True)
class Reference:
    """A paper or a page.

    Attributes:
        authors: Their surnames.
        others: Whether there are more of them than are named.
        title: As it is printed.
        year: Of its appearance; ``None`` for pages that change.
        url: Where it is; ``None`` if that is not told.
    """

    authors: tuple[str, ...]
    others: bool
    title: str
    year: int | None
    url: str | None


def references_in(docstring: str) -> list[Reference]:
    """Return what stands behind ``Reference:`` or ``References:`` in the docstring of a file.

    Each is written as authors, title in double quotes, year and address; what else is said is left out.

    Example:
        >>> references_in('Reference: as Li et al., "Switch EMA", 2024, https://arxiv.org/abs/2402.09240.')
        [Reference(authors=('Li',), others=True, title='Switch EMA', year=2024, \
url='https://arxiv.org/abs/2402.09240')]
    """
    found = re.search(r"^References?:(.*?)(?:\n\n|\Z)", docstring, re.DOTALL | re.MULTILINE)
    text = " ".join(found[1].split()) if found else ""
    entries = list(_ENTRY.finditer(text))
    ends = [*(entry.start() for entry in entries), len(text)][1:]
    references = []
    for entry, end in zip(entries, ends, strict=True):
        url = _URL.search(text, entry.end(), end)
        references.append(
            Reference(
                authors=tuple(re.split(r", | and ", entry["who"])),
                others=entry["others"] is not None,
                title=entry["title"],
                year=int(entry["year"]) if entry["year"] else None,
                url=url[0] if url else None,
            )
        )
    return references


def bibtex(references: Iterable[Reference]) -> str:
    r"""Return an entry for each of ``references``.

    Example:
        >>> print(bibtex(references_in('Reference: Li et al., "A & B", 2024, https://arxiv.org/abs/2402.09240.')))
        @misc{li2024a,
          author = {Li and others},
          title = {{A \& B}},
          year = {2024},
          eprint = {2402.09240},
          archiveprefix = {arXiv},
          url = {https://arxiv.org/abs/2402.09240},
        }
    """
    return "\n\n".join(entry(_key(each), "misc", _fields(each)) for each in references)


def entry(key: str, kind: str, fields: dict[str, str]) -> str:
    """Return one entry of BibTeX."""
    return "\n".join([f"@{kind}{{{key},", *(f"  {name} = {{{text}}}," for name, text in fields.items()), "}"])


def _fields(reference: Reference) -> dict[str, str]:
    names = [*reference.authors, *(["others"] if reference.others else [])]
    # Twice in braces, or styles would write names and acronyms in small letters.
    fields = {"author": " and ".join(names), "title": f"{{{escaped(reference.title)}}}"}
    if reference.year is not None:
        fields["year"] = str(reference.year)
    url = reference.url or ""
    if (at := url.partition("arxiv.org/abs/")[2]) and at:
        fields |= {"eprint": at, "archiveprefix": "arXiv"}
    if (doi := url.partition("doi.org/")[2]) and doi:
        fields["doi"] = doi
    return fields | ({"url": url} if url else {})


def escaped(text: str) -> str:
    """Return ``text`` with what means something to TeX made plain."""
    return re.sub(r"([&%$#_])", r"\\\1", text)


def _key(reference: Reference) -> str:
    plain = unicodedata.normalize("NFKD", f"{reference.authors[0]} {reference.year or ''} {reference.title}")
    words = re.sub(r"[^a-z0-9 ]", "", plain.lower()).split()
    name = reference.authors[0].count(" ") + 1
    return "".join(words[: name + (reference.year is not None) + 1])


def plain_text(reference: Reference) -> str:
    """Return ``reference`` as a sentence.

    Example:
        >>> plain_text(Reference(("Gal", "Ghahramani"), False, "Dropout", 2016, None))
        'Gal and Ghahramani, "Dropout", 2016.'
    """
    *first, last = reference.authors
    who = f"{', '.join(first)} and {last}" if first else last
    who += " et al." if reference.others else ""
    parts = (who, f'"{reference.title}"', reference.year, reference.url)
    return f"{', '.join(str(part) for part in parts if part is not None)}."
