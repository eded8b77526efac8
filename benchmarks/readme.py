"""Tables that a benchmark writes into the README."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["replace_table", "table_of"]


def replace_table(readme: Path, name: str, table: str) -> None:
    """Put ``table`` between the marks ``<!-- name -->`` and ``<!-- /name -->``.

    Raises:
        ValueError: If the marks are missing.
    """
    text = readme.read_text()
    begin, end = _place(text, readme.name, name)
    readme.write_text(f"{text[:begin]}{table}\n{text[end:].lstrip()}")


def table_of(readme: Path, name: str) -> str:
    """Return the table between the marks of ``name``.

    Raises:
        ValueError: If the marks are missing.
    """
    text = readme.read_text()
    return text[slice(*_place(text, readme.name, name))]


def _place(text: str, file: str, name: str) -> tuple[int, int]:
    found = re.search(rf"<!-- {name} -->\n(.*?)\n?<!-- /{name} -->", text, re.DOTALL)
    if found is None:
        raise ValueError(f"{file} must hold the marks <!-- {name} --> and <!-- /{name} -->")
    return found.span(1)
