"""Commands around a training: ``demo``, ``schedule`` and ``recipe``."""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Callable, Iterable
from functools import partial
from textwrap import fill
from typing import TYPE_CHECKING, Any

from lightning_tricks.cli.commands.command import Command, add_flags, add_options, new_parser

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["DEMO", "RECIPE", "SCHEDULE"]

_SCHEDULE_EXAMPLES = """\
examples:
  lightning-tricks schedule "warmup('5%') >> cosine(to=0.1)" --steps 1000 --png out.png
  lightning-tricks schedule "warmup('5 epochs') >> multistep(['30 epochs', '60 epochs'])" --epochs 90
  lightning-tricks schedule "cosine_restarts('10%', mult=2, peak_decay=0.8)"
  lightning-tricks schedule "0.1 * (warmup(100) >> stable_decay('20%'))" --steps 2000

made of (help(lightning_tricks.NAME) in Python tells more):
"""
_DEMO_EXAMPLES = """\
examples:
  lightning-tricks demo
  lightning-tricks demo --quick
  lightning-tricks demo --optimizer AdamW --lr 0.002 --seed 1
  WANDB_MODE=disabled lightning-tricks demo --output elsewhere
"""
_RECIPE_EXAMPLES = """\
examples:
  lightning-tricks recipe transformer
  lightning-tricks recipe from_scratch_cnn --yaml > techniques.yaml
  lightning-tricks recipe finetune --stages "[head, [blocks.1, norm], 'blocks.0']" --yaml

with LightningCLI: python train.py fit --config techniques.yaml --config the_rest.yaml
in Python:         Trainer(callbacks=lightning_tricks.recipes.transformer())
"""


def _demo_parser(argv: list[str]) -> ArgumentParser:
    parser = new_parser(
        "Train a small residual network on scikit-learn's digits, plainly and with five techniques, and\n"
        "compare. Weights & Biases gets both runs: online if an account is configured, else offline.\n"
        "WANDB_MODE, if set, decides instead: online, offline or disabled.",
        usage="lightning-tricks demo [options]",
        epilog=_DEMO_EXAMPLES,
    )
    add_options(
        parser,
        ("--output", str, "demo_output", "folder for the figure and the runs"),
        ("--seed", int, 0, "of data, weights and order; same seed, same table on the same machine"),
        ("--epochs", int, SUPPRESS, "of each of the two phases (default: 10, or 3 if quick)"),
        ("--schedule", str, SUPPRESS, "of the rate in the run with techniques"),
        ("--optimizer", str, "SGD", "of both runs, by its name in torch.optim"),
        ("--lr", float, SUPPRESS, "base rate of both runs (default: 0.05 for SGD, else the optimizer's own)"),
    )
    add_flags(
        parser,
        (
            "--quick",
            "seconds instead of a minute, to see that everything runs; a network too small and a training "
            "too short for the techniques to pay off: the plain run may win",
        ),
    )
    return parser


def _demo(settings: dict[str, Any]) -> Callable[[], None]:
    from lightning_tricks.cli.demo import run_demo
    from lightning_tricks.cli.demo_settings import Demo
    from lightning_tricks.study.wandb_runs import check_mode

    check_mode()
    build = Demo.quick if settings.pop("quick") else Demo
    return partial(run_demo, build(**settings))


def _schedule_parser(argv: list[str]) -> ArgumentParser:
    from lightning_tricks.core.notation import FUNCTIONS

    names = fill(", ".join(FUNCTIONS), 96, initial_indent="  ", subsequent_indent="  ")
    parser = new_parser(
        "Show a schedule over a run: a plot of plain characters and a table, and a picture if asked.",
        usage="lightning-tricks schedule TEXT [options]",
        epilog=f"{_SCHEDULE_EXAMPLES}{names}\n",
    )
    parser.add_argument("text", type=str, help="the schedule, as a setting takes it")
    add_options(
        parser,
        ("--steps", int, 1000, "optimizer steps of the run"),
        ("--epochs", int, SUPPRESS, "of the run, for lengths in epochs"),
        ("--png", str, SUPPRESS, "file for a picture; needs matplotlib"),
    )
    add_flags(parser, ("--json", "print the values as JSON in the place of plot and table"))
    return parser


def _schedule(settings: dict[str, Any]) -> Callable[[], None]:
    from lightning_tricks.cli.schedule import Preview, show

    return partial(show, Preview(**settings))


def _recipe_parser(argv: list[str]) -> ArgumentParser:
    parser = new_parser(
        "Show a ready list of techniques: a table of settings with the source of each, or the YAML that\n"
        "LightningCLI reads.",
        usage="lightning-tricks recipe NAME [options]",
        epilog=_RECIPE_EXAMPLES,
    )
    parser.add_argument("name", type=str, help=", ".join(_ready()))
    add_flags(parser, ("--yaml", "as configuration, with the sources as comments"))
    add_options(
        parser,
        (
            "--stages",
            list[str | list[str]],
            SUPPRESS,
            "for finetune: patterns of each part of the network, from the head down (default: head, body)",
        ),
        ("--generator", str, SUPPRESS, "for gan: name pattern of the generator (default: generator)"),
    )
    return parser


def _recipe(settings: dict[str, Any]) -> Callable[[], None]:
    from lightning_tricks.cli.recipe import chosen

    as_yaml = settings.pop("yaml")
    recipe = chosen(settings.pop("name"), settings)
    return partial(print, recipe.yaml() if as_yaml else recipe)


def _ready() -> Iterable[str]:
    return "finetune", "from_scratch_cnn", "transformer", "gan"


DEMO = Command("train a small model with and without techniques", _demo_parser, _demo)
SCHEDULE = Command("show a schedule over a run", _schedule_parser, _schedule)
RECIPE = Command("show a ready list of techniques, also as YAML", _recipe_parser, _recipe, _ready)
