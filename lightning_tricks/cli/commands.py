"""The commands of the command line: of each its options, and what it does with them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["COMMANDS", "Command", "new_parser"]

_SCHEDULE_EXAMPLES = """\
examples:
  lightning-tricks schedule "warmup('5%') >> cosine(to=0.1)" --steps 1000 --png out.png
  lightning-tricks schedule "warmup('5 epochs') >> multistep(['30 epochs', '60 epochs'])" --epochs 90
  lightning-tricks schedule "cosine_restarts('10%', mult=2, peak_decay=0.8)"
  lightning-tricks schedule "0.1 * (warmup(100) >> stable_decay('20%'))" --steps 2000

made of (help(lightning_tricks.NAME) in Python tells more):
"""
_RECIPE_EXAMPLES = """\
examples:
  lightning-tricks recipe transformer
  lightning-tricks recipe from_scratch_cnn --yaml > techniques.yaml
  lightning-tricks recipe finetune --stages "[head, [blocks.1, norm], 'blocks.0']" --yaml

with LightningCLI: python train.py fit --config techniques.yaml --config the_rest.yaml
in Python:         Trainer(callbacks=lightning_tricks.recipes.transformer())
"""


class Command(NamedTuple):
    """One command.

    Attributes:
        help: A line of it.
        parser: Returns its options, which may depend on the arguments.
        build: Checks settings and returns what is to be done.
    """

    help: str
    parser: Callable[[list[str]], ArgumentParser]
    build: Callable[[dict[str, Any]], Callable[[], None]]


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


def _demo_parser(argv: list[str]) -> ArgumentParser:
    parser = new_parser(
        "Train a small residual network on scikit-learn's digits, plainly and with five techniques, and\n"
        "compare. Weights & Biases gets both runs: online if an account is configured, else offline.\n"
        "WANDB_MODE, if set, decides instead: online, offline or disabled.",
        usage="lightning-tricks demo [options]",
    )
    parser.add_argument(
        "--output", type=str, default="demo_output", help="folder for the figure and the runs"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of data, weights and order; same seed, same table"
    )
    parser.add_argument(
        "--epochs",
        type=int,
        default=argparse.SUPPRESS,
        help="of each of the two phases (default: 10, or 3 if quick)",
    )
    parser.add_argument(
        "--schedule", type=str, default=argparse.SUPPRESS, help="of the rate in the run with techniques"
    )
    parser.add_argument(
        "--optimizer", type=str, default="SGD", help="of both runs, by its name in torch.optim"
    )
    parser.add_argument(
        "--lr",
        type=float,
        default=argparse.SUPPRESS,
        help="base rate of both runs (default: 0.05 for SGD, else the optimizer's own)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="seconds instead of a minute, to see that everything runs; a network too small and a training "
        "too short for the techniques to pay off: the plain run may win",
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
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps of the run")
    parser.add_argument(
        "--epochs", type=int, default=argparse.SUPPRESS, help="of the run, for lengths in epochs"
    )
    parser.add_argument(
        "--png", type=str, default=argparse.SUPPRESS, help="file for a picture; needs matplotlib"
    )
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
    parser.add_argument("name", type=str, help="finetune, from_scratch_cnn, transformer or gan")
    parser.add_argument("--yaml", action="store_true", help="as configuration, with the sources as comments")
    parser.add_argument(
        "--stages",
        type=list[str | list[str]],
        default=argparse.SUPPRESS,
        help="for finetune: patterns of each part of the network, from the head down (default: head, body)",
    )
    parser.add_argument(
        "--generator",
        type=str,
        default=argparse.SUPPRESS,
        help="for gan: name pattern of the generator (default: generator)",
    )
    return parser


def _recipe(settings: dict[str, Any]) -> Callable[[], None]:
    from lightning_tricks.cli.recipe import chosen

    as_yaml = settings.pop("yaml")
    recipe = chosen(settings.pop("name"), settings)
    return partial(print, recipe.yaml() if as_yaml else recipe)


def _ema_parser(argv: list[str]) -> ArgumentParser:
    from lightning_tricks.cli.ema import EXAMPLES, add_options

    parser = new_parser(
        "Put averages of several lengths together from the snapshots of a run with PostHocEMA: one file for\n"
        "each length, and a table with what an evaluation of your own says of it, if you name one.",
        usage="lightning-tricks ema FOLDER [options]",
        epilog=EXAMPLES,
    )
    add_options(parser)
    return parser


def _ema(settings: dict[str, Any]) -> Callable[[], None]:
    from lightning_tricks.cli.ema import Order, carry_out

    return partial(carry_out, Order(**settings))


def _fuse_parser(argv: list[str]) -> ArgumentParser:
    from lightning_tricks.cli.fuse_settings import EXAMPLES, add_options, method_in
    from lightning_tricks.cli.methods import METHODS

    names = fill(", ".join(METHODS), 96, initial_indent="  ", subsequent_indent="  ")
    parser = new_parser(
        "Fuse models into one, tensor by tensor, so that memory stays small whatever their size.",
        usage="lightning-tricks fuse MODEL... -o OUTPUT [options], or fuse RECIPE.yaml",
        epilog=f"{EXAMPLES}{names}\n",
    )
    add_options(parser, method_in(argv) if argv[:1] == ["fuse"] else None)
    return parser


def _fuse(settings: dict[str, Any]) -> Callable[[], None]:
    from lightning_tricks.cli.fuse import fusion_of, run_fuse
    from lightning_tricks.cli.fuse_settings import asked

    task = asked(settings)
    if task.curve and task.evaluate is not None:
        from lightning_tricks.cli.curve import run_curve
        from lightning_tricks.cli.named_function import function_named

        return partial(run_curve, task, function_named("--evaluate", task.evaluate))
    return partial(run_fuse, task, fusion_of(task))


def _ablate_parser(argv: list[str]) -> ArgumentParser:
    from lightning_tricks.cli.ablate import EXAMPLES, add_options

    parser = new_parser(
        "Measure what each technique of a LightningCLI project brings, and what it costs: train with none,\n"
        "with all, with all but one and with each alone, over several seeds.",
        usage="lightning-tricks ablate CONFIG... [options]",
        epilog=EXAMPLES,
    )
    add_options(parser)
    return parser


def _ablate(settings: dict[str, Any]) -> Callable[[], None]:
    from lightning_tricks.cli.ablate import Order, carry_out

    return partial(carry_out, Order(**settings))


def _search_parser(argv: list[str]) -> ArgumentParser:
    from lightning_tricks.cli.search import EXAMPLES, add_options

    parser = new_parser(
        "Search for better settings of a LightningCLI project, of techniques, on and off, and all else, by\n"
        "Optuna's samplers; test data are never used.",
        usage="lightning-tricks search CONFIG... [options]",
        epilog=EXAMPLES,
    )
    add_options(parser)
    return parser


def _search(settings: dict[str, Any]) -> Callable[[], None]:
    from lightning_tricks.cli.search import SearchOrder, carry_out

    return partial(carry_out, SearchOrder(**settings))


COMMANDS = {
    "demo": Command("train a small model with and without techniques", _demo_parser, _demo),
    "schedule": Command("show a schedule over a run", _schedule_parser, _schedule),
    "recipe": Command("show a ready list of techniques, also as YAML", _recipe_parser, _recipe),
    "ema": Command("averages of any length from a run with PostHocEMA", _ema_parser, _ema),
    "ablate": Command("measure what each technique of a project brings and costs", _ablate_parser, _ablate),
    "search": Command("search for better settings of a project", _search_parser, _search),
    "fuse": Command("fuse checkpoints into one, or compare them", _fuse_parser, _fuse),
}
