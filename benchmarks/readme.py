"""Tables that a benchmark writes into the README."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["replace_table"]


def replace_table(readme: Path, name: str, table: str) -> None:
    """Put ``table`` between the marks ``<!-- name -->`` and ``<!-- /name -->``.

    Raises:
        ValueError: If the marks are missing.
    """
    text = readme.read_text()
    marks = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
    if not marks.search(text):
        raise ValueError(f"{readme.name} must hold the marks <!-- {name} --> and <!-- /{name} -->")
    readme.write_text(marks.sub(lambda found: found[1] + table + found[2], text))
