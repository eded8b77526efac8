"""Tables that are written into the README and what stands in `docs`."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["document_of", "replace_table", "table_of"]


def document_of(root: Path, name: str) -> Path:
    """Return the document below ``root`` that has the marks of ``name``.

    Raises:
        ValueError: If none has.
    """
    for document in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        if f"<!-- {name} -->" in document.read_text():
            return document
    raise ValueError(
        f"README.md, or a document in docs, must hold the marks <!-- {name} --> and <!-- /{name} -->"
    )


def replace_table(document: Path, name: str, table: str) -> None:
    """Put ``table`` between the marks ``<!-- name -->`` and ``<!-- /name -->``.

    Raises:
        ValueError: If the marks are missing.
    """
    text = document.read_text()
    begin, end = _place(text, document.name, name)
    document.write_text(f"{text[:begin]}{table}\n{text[end:].lstrip()}")


def table_of(document: Path, name: str) -> str:
    """Return the table between the marks of ``name``.

    Raises:
        ValueError: If the marks are missing.
    """
    text = document.read_text()
    return text[slice(*_place(text, document.name, name))]


def _place(text: str, file: str, name: str) -> tuple[int, int]:
    found = re.search(rf"<!-- {name} -->\n(.*?)\n?<!-- /{name} -->", text, re.DOTALL)
    if found is None:
        raise ValueError(f"{file} must hold the marks <!-- {name} --> and <!-- /{name} -->")
    return found.span(1)
