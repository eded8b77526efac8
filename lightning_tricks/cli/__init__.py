"""The command line: ``lightning-tricks COMMAND``.

Exit codes: 0 done, 2 a mistake in the call (one line on standard error), 130 interrupted, 141 if whoever read
the output, such as ``head``, has stopped to.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from textwrap import fill
from typing import TYPE_CHECKING, Any

from lightning_tricks import __version__
from lightning_tricks.cli.refusal import RefusedError
from lightning_tricks.core import checks

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["main"]

_EXAMPLES = """\
examples:
  lightning-tricks demo                     a minute: tables, a figure, two runs in Weights & Biases
  lightning-tricks demo --quick             the same in seconds, but too short for techniques to pay off
  lightning-tricks demo --seed 1 --output results
  lightning-tricks demo --optimizer AdamW --schedule "warmup('10%') >> stable_decay('30%')"
  lightning-tricks schedule "warmup('5%') >> cosine(to=0.1)" --steps 1000
  lightning-tricks recipe transformer --yaml
  lightning-tricks fuse a.ckpt b.ckpt -o fused.ckpt
"""
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that ``argv`` (by default the process's arguments) names; return the exit code."""
    try:
        code = _main(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()  # here, where a reader that has gone is expected, and not as Python ends
    except KeyboardInterrupt:
        print("lightning-tricks: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Python writes what is left once more as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code


def _main(argv: list[str]) -> int:
    try:
        run = _command(argv)
    except SystemExit:  # --help and --version have printed what they were asked for
        return 0
    except (TypeError, ValueError, OSError) as error:
        return _refuse(error)
    try:
        run()
    except BrokenPipeError:
        raise
    except (ModuleNotFoundError, OSError, RefusedError) as error:
        return _refuse(error)
    return 0


def _refuse(error: Exception) -> int:
    print(f"lightning-tricks: error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def _command(argv: list[str]) -> Callable[[], None]:
    """Return what ``argv`` asks for, with its settings checked."""
    parser = _parser("Training techniques for PyTorch Lightning.", epilog=_EXAMPLES, version=__version__)
    known = {
        "demo": _demo_parser(),
        "schedule": _schedule_parser(),
        "recipe": _recipe_parser(),
        "fuse": _fuse_parser(argv),
    }
    # Not required, because the error below says more.
    commands = parser.add_subcommands(dest="command", required=False, metavar="COMMAND", title="commands")
    commands.add_subcommand("demo", known["demo"], help="train a small model with and without techniques")
    commands.add_subcommand("schedule", known["schedule"], help="show a schedule over a run")
    commands.add_subcommand("recipe", known["recipe"], help="show a ready list of techniques, also as YAML")
    commands.add_subcommand("fuse", known["fuse"], help="fuse checkpoints into one, or compare them")
    called = argv[0] if argv and argv[0] in known else ""
    see = f"see lightning-tricks {called + ' ' if called else ''}--help"
    try:
        config = parser.parse_args(argv)
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        options = known[called]._option_string_actions if called else ()
        raise ValueError(f"{_explained(str(error), options)} {see}") from None
    if config.command is None:
        raise ValueError(f"a command must be given, such as demo; {see}")
    build = {"demo": _demo, "schedule": _schedule, "recipe": _recipe, "fuse": _fuse}[config.command]
    return build(config[config.command].as_dict())


def _explained(message: str, options: Iterable[str]) -> str:
    """Return a parser's ``message`` as a user wants it, with the nearest of ``options`` to a misspelt one."""
    message = " ".join(message.split())
    if wrong := re.search(r"Parser key \"(\w+)\": Expected a <class 'int'>. Got value: (.*)", message):
        return f"--{wrong[1]} must be a whole number, got {wrong[2]};"
    if unknown := re.search(r"nrecognized arguments: (--\w+)", message):
        close = checks.nearest(unknown[1], options, count=1)
        if close and close[0] != unknown[1]:
            return f"{message}; did you mean {close[0]}?"
    return f"{message.removesuffix('.')};"


def _parser(description: str, **options: Any) -> ArgumentParser:
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


def _demo_parser() -> ArgumentParser:
    parser = _parser(
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
    from lightning_tricks.cli.demo_wandb import check_mode

    check_mode()
    build = Demo.quick if settings.pop("quick") else Demo
    return partial(run_demo, build(**settings))


def _schedule_parser() -> ArgumentParser:
    from lightning_tricks.core.notation import FUNCTIONS

    names = fill(", ".join(FUNCTIONS), 96, initial_indent="  ", subsequent_indent="  ")
    parser = _parser(
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


def _recipe_parser() -> ArgumentParser:
    parser = _parser(
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


def _fuse_parser(argv: list[str]) -> ArgumentParser:
    from lightning_tricks.cli.fuse_settings import EXAMPLES, METHODS, add_options, method_in

    names = fill(", ".join(METHODS), 96, initial_indent="  ", subsequent_indent="  ")
    parser = _parser(
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
    return partial(run_fuse, task, fusion_of(task))
