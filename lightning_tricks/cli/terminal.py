"""What is printed for people to read: in the width of their terminal, and with styles if it has some."""

from __future__ import annotations

import re
import sys

from rich.console import Console
from rich.text import Text

__all__ = ["as_it_stands", "spans", "terminal"]

_WIDTH = 110  # where there is no terminal


class _Terminal(Console):
    """Lets the command line say what it means that nobody reads on; rich would end the process itself."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def terminal() -> Console:
    """Return what prints to standard output."""
    return _Terminal(file=sys.stdout, width=None if sys.stdout.isatty() else _WIDTH, highlight=False)


def spans(text: str) -> Text:
    """Return ``text``, in which Markdown marks code and what is bold, with styles in the place of marks.

    Example:
        >>> spans("**Use** `fit` **not** 2 ** 3").plain
        'Use fit not 2 ** 3'
    """
    shown = Text()
    for part in re.split(r"(`[^`]+`|\*\*[^*\s]+\*\*)", text):
        code, bold = part.startswith("`"), part.startswith("**")
        shown.append(part.strip("`*") if code or bold else part, style="cyan" if code else "bold" * bold)
    return shown


def as_it_stands(text: str) -> Text:
    """Return ``text``, which is code or a formula, to be printed in its own lines however long they are."""
    return Text(text.replace("`", ""), style="green", no_wrap=True)
