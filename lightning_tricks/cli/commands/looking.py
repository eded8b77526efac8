"""Commands that tell what there is: ``list``, ``card`` and ``cite``; and ``completion``."""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from lightning_tricks.cli.commands.command import Command, add_flags, new_parser

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["CARD", "CITE", "COMPLETION", "LIST"]

_LIST_EXAMPLES = """\
examples:
  lightning-tricks list
  lightning-tricks list technique           a kind: also mixin, method, class, schedule, function
  lightning-tricks list averaging           a family
  lightning-tricks list norm                what has the word in its name or its sentence
  lightning-tricks list EWC                 or, if nothing has, in its card, or what it abbreviates there
  lightning-tricks list --json
"""
_CARD_EXAMPLES = """\
examples:
  lightning-tricks card EMAWeights
  lightning-tricks card Ties
  lightning-tricks card GradientClip --json
"""
_CITE_EXAMPLES = """\
examples:
  lightning-tricks cite                     the library itself
  lightning-tricks cite EMAWeights Lookahead >> papers.bib
  lightning-tricks cite WeightFusion --text
"""
_COMPLETION_EXAMPLES = """\
examples, once; new shells then complete:
  lightning-tricks completion bash > ~/.local/share/bash-completion/completions/lightning-tricks
  lightning-tricks completion zsh > "${fpath[1]}/_lightning-tricks"
  lightning-tricks completion fish > ~/.config/fish/completions/lightning-tricks.fish

for this shell alone: eval "$(lightning-tricks completion bash)"
"""


def _names() -> Iterable[str]:
    import lightning_tricks

    return sorted(lightning_tricks.__all__)


def _words() -> Iterable[str]:
    from lightning_tricks.cli.cards import FAMILIES, KINDS

    return *KINDS, *FAMILIES


def _shells() -> Iterable[str]:
    return "bash", "zsh", "fish"


def _list_parser(argv: list[str]) -> ArgumentParser:
    parser = new_parser(
        "List what the package offers, by family, with a sentence each.",
        usage="lightning-tricks list [WORD] [options]",
        epilog=_LIST_EXAMPLES,
    )
    parser.add_argument(
        "word",
        type=str,
        nargs="?",
        default=SUPPRESS,
        help="list what has it in name, kind, family or sentence, else in its card",
    )
    add_flags(parser, ("--json", "print JSON in the place of tables"))
    return parser


def _list(settings: dict[str, Any]) -> Callable[[], None]:
    from lightning_tricks.cli.listing import Listing, show_list

    return partial(show_list, Listing(**settings))


def _card_parser(argv: list[str]) -> ArgumentParser:
    parser = new_parser(
        "Show the card of a name: when it acts, what it changes, logs, saves and costs, when to use it and\n"
        "when not, its settings, an example, the formula and the papers.",
        usage="lightning-tricks card NAME [options]",
        epilog=_CARD_EXAMPLES,
    )
    parser.add_argument("name", type=str, help="of what lightning-tricks list shows")
    add_flags(parser, ("--json", "print its parts as JSON"))
    return parser


def _card(settings: dict[str, Any]) -> Callable[[], None]:
    from lightning_tricks.cli.card import known, show_card

    return partial(show_card, known("name", settings["name"]), as_json=settings["json"])


def _cite_parser(argv: list[str]) -> ArgumentParser:
    parser = new_parser(
        "Print the papers behind names, as BibTeX; without a name, the entry of this library.",
        usage="lightning-tricks cite [NAME...] [options]",
        epilog=_CITE_EXAMPLES,
    )
    parser.add_argument("names", type=str, nargs="*", default=[], help="of what lightning-tricks list shows")
    add_flags(
        parser,
        ("--text", "print sentences in the place of BibTeX"),
        ("--json", "print JSON in the place of BibTeX"),
    )
    return parser


def _cite(settings: dict[str, Any]) -> Callable[[], None]:
    from lightning_tricks.cli.cite import Citation, show_citation

    return partial(show_citation, Citation(**settings))


def _completion_parser(argv: list[str]) -> ArgumentParser:
    parser = new_parser(
        "Print the script with which a shell completes commands, options, names and files.",
        usage="lightning-tricks completion SHELL",
        epilog=_COMPLETION_EXAMPLES,
    )
    parser.add_argument("shell", type=str, help=", ".join(_shells()))
    return parser


def _completion(settings: dict[str, Any]) -> Callable[[], None]:
    from lightning_tricks.cli.completion import script
    from lightning_tricks.core import checks

    text = script(checks.one_of("shell", settings["shell"], tuple(_shells())))
    return partial(print, text)


LIST = Command("list techniques and all else, with a sentence each", _list_parser, _list, _words)
CARD = Command("show the card of one: what it does, costs, takes", _card_parser, _card, _names)
CITE = Command("print the papers behind techniques as BibTeX", _cite_parser, _cite, _names)
COMPLETION = Command(
    "print the script that completes words in a shell", _completion_parser, _completion, _shells
)
