"""Commands on models that are trained: ``ema`` and ``fuse``."""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Callable, Container, Sequence
from functools import partial
from textwrap import fill
from typing import TYPE_CHECKING, Any

from lightning_tricks.cli.commands.command import Command, add_flags, add_options, new_parser
from lightning_tricks.cli.method_names import method_names, method_options
from lightning_tricks.core import checks

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["EMA", "FUSE"]

_EMA_EXAMPLES = """\
examples:
  lightning-tricks ema runs/checkpoints --sigma-rel 0.05,0.1,0.15
  lightning-tricks ema runs/checkpoints --dry-run
  lightning-tricks ema runs/checkpoints --sigma-rel 0.1 --format safetensors --output averages
  lightning-tricks ema runs/checkpoints --evaluate my_project.scores:fid --png lengths.png --json

with a function such as
  def fid(state_dict): model.load_state_dict(state_dict); return score(model)  # or {"fid": 2.1, "kid": 0.3}
"""
_FUSE_EXAMPLES = """\
examples:
  lightning-tricks fuse a.ckpt b.ckpt c.ckpt -o fused.ckpt
  lightning-tricks fuse a.ckpt b.ckpt --weights "[0.7, 0.3]" -o fused.ckpt
  lightning-tricks fuse a.ckpt b.ckpt --method interpolate --alpha 0.3 -o fused.safetensors  # 0.3 of a
  lightning-tricks fuse a.ckpt b.ckpt --method slerp --t 0.3 -o fused.ckpt  # 0.3 of the way from a to b
  lightning-tricks fuse recipe.yaml --dry-run
  lightning-tricks fuse --compare a.ckpt b.ckpt --png alike.png
  lightning-tricks fuse --curve a.ckpt b.ckpt --evaluate my_project.scores:loss --png curve.png
  lightning-tricks fuse a.ckpt b.ckpt --method greedy_soup --evaluate my_project.scores:accuracy -o fused.ckpt
  lightning-tricks fuse a.ckpt b.ckpt --method reg_mean --probe my_project.data:probe -o fused.ckpt

what --evaluate and --probe name, for example:
  def loss(state_dict): model.load_state_dict(state_dict); return mean_loss(model)
  def accuracy(state_dict): model.load_state_dict(state_dict); return score(model)  # higher is better
  def probe(): return lightning_tricks.Probe(model, batches, lambda model, batch: model.loss(batch))

a recipe has the options as its entries, and a method with its parameters, which may be methods:
  models: [a.ckpt, b.ckpt]
  method: layerwise
  parameters: {recipe: {"head.*": {method: slerp, parameters: {t: 0.3}}, "*": {method: average}}}
  output: fused.ckpt

--method NAME --help shows the options of a method. Methods:
"""


def _ema_parser(argv: list[str]) -> ArgumentParser:
    parser = new_parser(
        "Put averages of several lengths together from the snapshots of a run with PostHocEMA: one file for\n"
        "each length, and a table with what an evaluation of your own says of it, if you name one.",
        usage="lightning-tricks ema FOLDER [options]",
        epilog=_EMA_EXAMPLES,
    )
    parser.add_argument(
        "folder", type=str, help="where the checkpoints lie, with post_hoc_ema among them; or that folder"
    )
    add_options(
        parser,
        ("--sigma-rel", str, "0.05,0.1,0.15", "relative widths, with commas between them"),
        ("--format", str, "ckpt", "ckpt, for load_from_checkpoint, or safetensors"),
        ("--step", int, SUPPRESS, "a snapshot at which the run is taken to have ended (default: the last)"),
        (
            "--output",
            str,
            SUPPRESS,
            "folder for the averages (default: FOLDER; with --evaluate, none is written)",
        ),
        (
            "--evaluate",
            str,
            SUPPRESS,
            "MODULE:FUNCTION that gets a state dict and returns a number or a dict of them",
        ),
        (
            "--png",
            str,
            SUPPRESS,
            "file for a picture of what --evaluate returns over the widths; needs matplotlib",
        ),
    )
    add_flags(
        parser,
        ("--dry-run", "list snapshots and what would be written"),
        ("--force", "replace files that are there"),
        ("--json", "print JSON in the place of tables"),
    )
    return parser


def _ema(settings: dict[str, Any]) -> Callable[[], None]:
    from lightning_tricks.cli.ema import Order, carry_out

    return partial(carry_out, Order(**settings))


def _method_in(argv: Sequence[str], general: Container[str]) -> str | None:
    """Return the method that ``argv`` names; the usual one if it has other options than ``general`` ones.

    To make the options of a method loads Lightning: not even the usual one has them unasked.
    """
    for word, after in zip(argv, [*argv[1:], ""], strict=True):
        if word == "--method" or word.startswith("--method="):
            return checks.one_of("--method", word.partition("=")[2] or after, method_names())
    others = any(option not in general for option in _options_in(argv))
    return "average" if others and not any(word.endswith((".yaml", ".yml")) for word in argv) else None


def _options_in(argv: Sequence[str]) -> list[str]:
    return [word.partition("=")[0] for word in argv if word.startswith("--")]


def _check_options(argv: Sequence[str], method: str, known: Container[str]) -> None:
    """Refuse what is an option of other methods alone, with their names and what this one has."""
    options = method_options()
    for option in _options_in(argv):
        owners = [name for name, own in options.items() if option in own]
        if owners and option not in known:
            here, there = ", ".join(options[method]) or "no options", ", ".join(owners)
            raise ValueError(
                f"{option} must be left out with {method}, which has {here}; it is an option of {there}"
            )


def _fuse_parser(argv: list[str]) -> ArgumentParser:
    asks = not {"-h", "--help"}.isdisjoint(argv)
    names = fill(", ".join(method_names()), 96, initial_indent="  ", subsequent_indent="  ") if asks else ""
    parser = new_parser(
        "Fuse models into one, tensor by tensor, so that memory stays small whatever their size.",
        usage="lightning-tricks fuse MODEL... -o OUTPUT [options], or fuse RECIPE.yaml",
        epilog=f"{_FUSE_EXAMPLES}{names}\n",
    )
    parser.add_argument(
        "models", nargs="*", type=str, help="checkpoints, state dicts, safetensors, their index"
    )
    parser.add_argument("-o", "--output", type=str, default=SUPPRESS, help="*.ckpt or *.safetensors")
    add_options(
        parser,
        ("--method", str, SUPPRESS, "how to fuse (default: average)"),
        ("--which", str, SUPPRESS, "set of a checkpoint with averages: state_dict (default), live, average"),
        ("--prefix", str, SUPPRESS, "names are compared without it, such as model."),
        ("--max-memory", str, SUPPRESS, "such as 500MB, for the tensors that are worked on"),
        ("--threads", int, SUPPRESS, "how many tensors or slices at a time (default: 2)"),
        ("--evaluate", str, SUPPRESS, "MODULE:FUNCTION that gets a state dict and returns how good it is"),
        ("--probe", str, SUPPRESS, "MODULE:FUNCTION that returns the Probe which a method looks at"),
        ("--points", int, SUPPRESS, "with --curve: points of each line, its ends included (default: 11)"),
        ("--png", str, SUPPRESS, "with --compare or --curve: file for a picture; needs matplotlib"),
    )
    for name, text in (
        ("--allow-missing", "take tensors that some models lack from the last that has them"),
        ("--allow-pickle", "read files that may run any code: only those of people you trust"),
        ("--verify", "compare checkpoints with the checksums in them first"),
        ("--force", "replace the output if it is there"),
        ("--sha256", "write the SHA-256 of each input down"),
        ("--compare", "show how alike the models are to the first, and fuse nothing"),
        ("--curve", "measure a loss along the line from each model to the next, and fuse nothing"),
        ("--dry-run", "show what would be done to which tensor, and the memory needed"),
        ("--json", "print JSON"),
    ):
        parser.add_argument(name, action="store_true", default=SUPPRESS, help=text)
    method = _method_in(argv, parser._option_string_actions)
    if method is not None:
        from lightning_tricks.cli.methods import METHODS

        parser.add_class_arguments(METHODS[method], None, as_group=False)
        _check_options(argv, method, parser._option_string_actions)
    return parser


def _fuse(settings: dict[str, Any]) -> Callable[[], None]:
    from lightning_tricks.cli.fuse import fusion_of, run_fuse
    from lightning_tricks.cli.fuse_settings import asked

    task = asked(settings)
    if task.curve and task.evaluate is not None:
        from lightning_tricks.cli.curve import run_curve
        from lightning_tricks.cli.named_objects import function_named

        return partial(run_curve, task, function_named("--evaluate", task.evaluate))
    return partial(run_fuse, task, fusion_of(task))


EMA = Command(
    "averages of any length from a run with PostHocEMA",
    _ema_parser,
    _ema,
    values={"--format": lambda: ("ckpt", "safetensors")},
)
FUSE = Command(
    "fuse checkpoints into one, or compare them",
    _fuse_parser,
    _fuse,
    values={"--method": method_names, "--which": lambda: ("state_dict", "live", "average")},
)
