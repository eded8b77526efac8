"""The command line, ``lightning-tricks COMMAND``: what each command takes, does and prints.

It calls the rest of the package and adds nothing to it. Exit codes: 0 done, 2 a mistake in the call (one line
on standard error), 130 interrupted, 141 if whoever read the output, such as ``head``, has stopped to.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from lightning_tricks import __version__
from lightning_tricks.cli.commands import COMMANDS, new_parser
from lightning_tricks.cli.refusal import RefusedError
from lightning_tricks.core import checks

__all__ = ["main"]

_EXAMPLES = """\
examples:
  lightning-tricks list                     what there is, with a sentence each
  lightning-tricks card EMAWeights          what it does, costs and takes; cite EMAWeights gives its papers
  lightning-tricks demo                     a minute: tables, a figure, two runs in Weights & Biases
  lightning-tricks demo --quick             the same in seconds, but too short for techniques to pay off
  lightning-tricks schedule "warmup('5%') >> cosine(to=0.1)" --steps 1000
  lightning-tricks recipe transformer --yaml
  lightning-tricks groups config.yaml       parameter groups, before training
  lightning-tricks ablate config.yaml --seeds 5
  lightning-tricks search config.yaml --trials 20
  lightning-tricks ema runs/checkpoints --sigma-rel 0.05,0.1,0.15
  lightning-tricks fuse a.ckpt b.ckpt -o fused.ckpt
  lightning-tricks completion --help        how a shell completes all of this
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that ``argv`` (by default the process's arguments) names; return the exit code."""
    try:
        # A process that is there for something else keeps its settings.
        loading = _loading() if argv is None else nullcontext()
        code = _main(list(sys.argv[1:] if argv is None else argv), loading)
        sys.stdout.flush()  # here, where a reader that has gone is expected, and not as Python ends
    except KeyboardInterrupt:
        print("lightning-tricks: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Python writes what is left once more as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code


@contextmanager
def _loading() -> Iterator[None]:
    """Let Python look for garbage neither while much is loaded nor in that later, a third of the start."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _main(argv: list[str], loading: AbstractContextManager[None]) -> int:
    try:
        with loading:
            run = _command(argv)
    except SystemExit:  # --help and --version have printed what they were asked for
        return 0
    except BrokenPipeError:
        raise
    except (ModuleNotFoundError, OSError, TypeError, ValueError) as error:
        return _refuse(error)
    try:
        run()
    except BrokenPipeError:
        raise
    except (ModuleNotFoundError, OSError, RefusedError) as error:
        return _refuse(error)
    return 0


def _refuse(error: Exception) -> int:
    told = str(error)
    if isinstance(error, OSError) and error.strerror:  # without the number that str() shows
        told = ": ".join(str(part) for part in (error.filename, error.strerror) if part is not None)
    print(f"lightning-tricks: error: {' '.join(told.split())}", file=sys.stderr)
    return 2


def _command(argv: list[str]) -> Callable[[], None]:
    """Return what ``argv`` asks for, with its settings checked."""
    if argv and not argv[0].startswith("-"):
        checks.one_of("command", argv[0], list(COMMANDS))
    parser = new_parser("Training techniques for PyTorch Lightning.", epilog=_EXAMPLES, version=__version__)
    # Others' options are not made, because they load what only those commands need.
    known = {
        name: command.parser(argv) if argv[:1] == [name] else new_parser("")
        for name, command in COMMANDS.items()
    }
    # Not required, because the error below says more.
    commands = parser.add_subcommands(dest="command", required=False, metavar="COMMAND", title="commands")
    for name, command in COMMANDS.items():
        commands.add_subcommand(name, known[name], help=command.help)
    called = argv[0] if argv and argv[0] in known else ""
    see = f"see lightning-tricks {called + ' ' if called else ''}--help"
    try:
        config = parser.parse_args(argv)
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        options = known[called]._option_string_actions if called else ()
        raise ValueError(f"{_explained(str(error), options)} {see}") from None
    if config.command is None:
        raise ValueError(f"a command must be given, one of {', '.join(COMMANDS)}; {see}")
    return COMMANDS[config.command].build(config[config.command].as_dict())


def _explained(message: str, options: Iterable[str]) -> str:
    """Return a parser's ``message`` as a user wants it, with the nearest of ``options`` to a misspelt one."""
    message = " ".join(message.split())
    if wrong := re.search(r"Parser key \"(\w+)\": Expected a <class 'int'>. Got value: (.*)", message):
        return f"--{wrong[1]} must be a whole number, got {wrong[2]};"
    if wrong := re.search(r"Parser key \"(\w+)\": Expected a <class 'float'>. Got value: (.*)", message):
        return f"--{wrong[1]} must be a number, got {wrong[2]};"
    if wrong := re.search(r"Parser key \"(\w+)\": .*tuple\[(\w+), \.\.\.\].* Given value: (.*)", message):
        such = "[0.5, 0.5]" if wrong[2] == "float" else "[one, another]"
        return f'--{wrong[1]} must be a list, such as "{such}", got {wrong[3]};'
    if lacking := re.search(r"arguments are required: \w+\.(\w+)$", message):
        name = lacking[1].replace("_", "-")
        return f"{'--' if f'--{name}' in options else ''}{name} must be given;"
    if unknown := re.search(r"nrecognized arguments: (--\w+)", message):
        # Without what all begin with, which would make all alike.
        close = checks.nearest(unknown[1][2:], [option[2:] for option in options], count=1)
        if close and close[0] != unknown[1][2:]:
            return f"{message}; did you mean --{close[0]}?"
    return f"{message.removesuffix('.')};"
