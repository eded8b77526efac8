"""``lightning-tricks completion``: what a shell offers at the tabulator, as a script that needs no Python."""

from __future__ import annotations

import argparse
import re

from lightning_tricks.cli.cards import cards
from lightning_tricks.cli.commands import COMMANDS
from lightning_tricks.cli.commands.command import Command
from lightning_tricks.core.extras import extra

__all__ = ["script"]


def script(shell: str) -> str:
    """Return the script for ``shell``.

    Raises:
        ModuleNotFoundError: If shtab is not installed; names the extra to install.
    """
    with extra("completion"):
        import shtab
    parser = argparse.ArgumentParser("lightning-tricks")
    parser.add_argument("--version", action="store_true", help="print version and exit")
    commands = parser.add_subparsers()
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.help)
        _copy(command, command.parser([name]), own, files=shtab.FILE)
        if name == "fuse":
            settings = {s.name for card in cards() if card.kind == "method" for s in card.settings}
            for setting in sorted(settings):
                own.add_argument(f"--{setting}", help="of some methods")
    text: str = shtab.complete(parser, shell)
    # For zsh, shtab lets the first of several arguments exclude all others: "(*)" for "*".
    return re.sub(r'"\(\*\)::?', '"*:', text) if shell == "zsh" else text


def _copy(
    command: Command, source: argparse.ArgumentParser, own: argparse.ArgumentParser, *, files: object
) -> None:
    """Give ``own`` the arguments of a parser of jsonargparse's, with what is offered for their values."""
    for action in source._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
            continue
        words = (
            command.values.get(f"--{action.dest.replace('_', '-')}")
            if action.option_strings
            else command.words
        )
        offered = list(words()) if words else []
        about = (action.help or "").replace("%", "%%")
        if action.nargs == 0:
            own.add_argument(*action.option_strings, action="store_true", help=about)
            continue
        names = action.option_strings or [action.dest]
        made = own.add_argument(*names, nargs=action.nargs, choices=offered or None, help=about)
        if not offered and _is_path(action):
            made.complete = files  # type: ignore[attr-defined]  # where shtab looks


def _is_path(action: argparse.Action) -> bool:
    return not action.option_strings or action.dest in {"output", "png", "space"}
