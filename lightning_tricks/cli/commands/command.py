"""What a command is, and how its parser is made."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["Command", "add_flags", "add_options", "new_parser"]

Words = Callable[[], Iterable[str]]


def _none() -> Iterable[str]:
    return ()


class Command(NamedTuple):
    """One command.

    Attributes:
        help: A line of it.
        parser: Returns its options, which may depend on the arguments; loads neither torch nor Lightning
            unless they ask for what only these know.
        build: Checks settings and returns what is to be done.
        words: What a shell offers for its arguments; nothing stands for files.
        values: And for the values of options, by their names.
    """

    help: str
    parser: Callable[[list[str]], ArgumentParser]
    build: Callable[[dict[str, Any]], Callable[[], None]]
    words: Words = _none
    values: Mapping[str, Words] = {}


def new_parser(description: str, **options: Any) -> ArgumentParser:
    """Return a parser without arguments, whose mistakes are errors and whose epilog keeps its lines."""
    # Imported here, because whoever imports the package for its ``main`` need not pay for it.
    import jsonargparse

    class Formatter(argparse.RawDescriptionHelpFormatter, jsonargparse.DefaultHelpFormatter):
        """Keeps the lines of the examples."""

    return jsonargparse.ArgumentParser(
        prog="lightning-tricks",
        description=description,
        formatter_class=Formatter,
        exit_on_error=False,
        allow_abbrev=False,
        **options,
    )


def add_options(parser: ArgumentParser, *options: tuple[str, Any, Any, str]) -> None:
    """Add options: of each the name, the type, the default and a line of help."""
    for name, kind, default, text in options:
        parser.add_argument(name, type=kind, default=default, help=text)


def add_flags(parser: ArgumentParser, *flags: tuple[str, str]) -> None:
    """Add flags: of each the name and a line of help."""
    for name, text in flags:
        parser.add_argument(name, action="store_true", help=text)
