"""The command line: ``lightning-tricks COMMAND``.

Exit codes: 0 done, 2 a mistake in the call (one line on standard error), 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from lightning_tricks import __version__

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["main"]

_EXAMPLES = """\
examples:
  lightning-tricks demo                     a minute: tables, a figure, two runs in Weights & Biases
  lightning-tricks demo --quick             the same in seconds, with a network too small to learn much
  lightning-tricks demo --seed 1 --output results
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that ``argv`` (by default the process's arguments) names; return the exit code."""
    try:
        return _main(argv)
    except KeyboardInterrupt:
        print("lightning-tricks: interrupted", file=sys.stderr)
        return 130


def _main(argv: Sequence[str] | None) -> int:
    try:
        run = _command(argv)
    except SystemExit:  # --help and --version have printed what they were asked for
        return 0
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        return _refuse(error)
    try:
        run()
    except (ModuleNotFoundError, OSError) as error:
        return _refuse(error)
    return 0


def _refuse(error: Exception) -> int:
    print(f"lightning-tricks: error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def _command(argv: Sequence[str] | None) -> Callable[[], None]:
    """Return what ``argv`` asks for, with its settings checked."""
    parser = _parser("Training techniques for PyTorch Lightning.", epilog=_EXAMPLES, version=__version__)
    commands = parser.add_subcommands(dest="command")
    commands.add_subcommand("demo", _demo_parser(), help="train a small model with and without techniques")
    config = parser.parse_args(argv)
    return _demo(config.demo.as_dict())


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
        "compare. Weights & Biases gets both runs: online if an account is configured, offline otherwise,\n"
        "as WANDB_MODE says if that is set."
    )
    parser.add_argument(
        "--output", type=str, default="demo_output", help="folder for the figure and the runs"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of data, weights and order; same seed, same table"
    )
    parser.add_argument("--epochs", type=int, default=None, help="of each phase: 10, or 3 if quick")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes: little is learned")
    return parser


def _demo(settings: dict[str, Any]) -> Callable[[], None]:
    from lightning_tricks.cli.demo import Demo, run_demo

    given = {name: value for name, value in settings.items() if value is not None}
    build = Demo.quick if given.pop("quick") else Demo
    return partial(run_demo, build(**given))
