"""Commands on projects of LightningCLI: ``groups``, ``ablate`` and ``search``."""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from lightning_tricks.cli.commands.command import Command, add_flags, add_options, new_parser

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["ABLATE", "GROUPS", "SEARCH"]

_GROUPS_EXAMPLES = """\
examples:
  lightning-tricks groups config.yaml
  lightning-tricks groups config.yaml more.yaml --json
  lightning-tricks groups config.yaml --model train:Net --data train:Data
"""
_ABLATE_EXAMPLES = """\
examples:
  lightning-tricks ablate config.yaml --dry-run
  lightning-tricks ablate config.yaml
  lightning-tricks ablate config.yaml techniques.yaml --metric val_accuracy --mode max --seeds 10
  lightning-tricks ablate config.yaml --techniques "[EMAWeights, GradientClip]" --workers 2
  lightning-tricks ablate config.yaml --model train:Net --data train:Data
  lightning-tricks ablate config.yaml --storage postgresql://me@host/trials --name resnet

Interrupted, the same call goes on. Called again meanwhile, here or on another machine that sees the same
storage, it joins in.
"""
_SEARCH_EXAMPLES = """\
examples:
  lightning-tricks search config.yaml --dry-run > space.yaml
  lightning-tricks search config.yaml
  lightning-tricks search config.yaml --space space.yaml --metric val_accuracy --mode max --trials 50
  lightning-tricks search config.yaml --sampler gp --folds 5 --timeout 600
  lightning-tricks search config.yaml --storage postgresql://me@host/trials --workers 2

a space.yaml; each value of the config must be among what it may be, with which the search begins:
  model.init_args.lr: {low: 0.001, high: 1.0, log: true}
  trainer.max_epochs: {low: 5, high: 100}
  techniques:
    EMAWeights:
      optional: true
      decay: {low: 0.9, high: 0.9999}

Interrupted, the same call goes on. Called again meanwhile, here or on another machine that sees the same
storage, it joins in. The best is written as OUTPUT/best.yaml, which LightningCLI runs:
  python train.py fit --config search/best.yaml
"""


def _add_config(parser: ArgumentParser) -> None:
    parser.add_argument(
        "config",
        type=str,
        nargs="+",
        help="YAML of LightningCLI; of several files, later ones add to earlier ones",
    )
    add_options(
        parser,
        ("--model", str, SUPPRESS, "MODULE:CLASS, where the program names it: LightningCLI(Net, Data)"),
        ("--data", str, SUPPRESS, "MODULE:CLASS, likewise"),
    )


def _add_study(parser: ArgumentParser, *, metric: str, output: str, folder: str, dry_run: str) -> None:
    """Add what both kinds of study take."""
    add_options(
        parser,
        ("--metric", str, "val_loss", f"{metric}, logged in validation"),
        ("--mode", str, SUPPRESS, "min if less of it is better, or max (default: min, of a loss only)"),
        ("--output", str, output, f"folder for {folder}, and for the trials' file"),
        ("--workers", int, 1, "trials that run at once, each in a process of its own"),
        ("--storage", str, SUPPRESS, "file or URL of a database (default: OUTPUT/study.journal)"),
        ("--name", str, SUPPRESS, "of the study in its storage (default: the name of the first file)"),
    )
    add_flags(
        parser,
        ("--wandb", "log each trial to Weights & Biases, in a group"),
        ("--dry-run", dry_run),
        ("--json", "print JSON in the place of tables"),
    )


def _groups_parser(argv: list[str]) -> ArgumentParser:
    parser = new_parser(
        "Show the parameter groups with which a LightningCLI project begins to train: what each holds, its\n"
        "rate and its decay. Trainer, module and data are built as fit does; nothing is trained or written.",
        usage="lightning-tricks groups CONFIG... [options]",
        epilog=_GROUPS_EXAMPLES,
    )
    _add_config(parser)
    add_flags(parser, ("--json", "print JSON, with the names of all parameters, in the place of tables"))
    return parser


def _groups(settings: dict[str, Any]) -> Callable[[], None]:
    from lightning_tricks.cli.groups import show_groups
    from lightning_tricks.cli.named_objects import classes_named
    from lightning_tricks.study.project import Project

    as_json = settings.pop("json")
    classes = classes_named(settings.get("model"), settings.get("data"))
    project = Project.read(settings["config"], [], needed=False, **classes)  # no callback taken apart
    return partial(show_groups, project, as_json=as_json)


def _ablate_parser(argv: list[str]) -> ArgumentParser:
    parser = new_parser(
        "Measure what each technique of a LightningCLI project brings, and what it costs: train with none,\n"
        "with all, with all but one and with each alone, over several seeds.",
        usage="lightning-tricks ablate CONFIG... [options]",
        epilog=_ABLATE_EXAMPLES,
    )
    _add_config(parser)
    add_options(
        parser,
        ("--seeds", int, 5, "how often each arm is trained; the report has all seeds of the study"),
        (
            "--techniques",
            list[str],
            SUPPRESS,
            "callbacks of the config, by class (default: all of ours that do more than watch)",
        ),
    )
    _add_study(
        parser,
        metric="what is compared",
        output="ablation",
        folder="table, picture and figures",
        dry_run="list the trials and run none",
    )
    return parser


def _ablate(settings: dict[str, Any]) -> Callable[[], None]:
    from lightning_tricks.cli.ablate import Order, carry_out

    return partial(carry_out, Order(**settings))


def _search_parser(argv: list[str]) -> ArgumentParser:
    parser = new_parser(
        "Search for better settings of a LightningCLI project, of techniques, on and off, and all else, by\n"
        "Optuna's samplers; test data are never used.",
        usage="lightning-tricks search CONFIG... [options]",
        epilog=_SEARCH_EXAMPLES,
    )
    _add_config(parser)
    add_options(
        parser,
        (
            "--space",
            str,
            SUPPRESS,
            "YAML of what may vary (default: techniques, within their recommended ranges)",
        ),
        ("--sampler", str, "tpe", f"what draws: {', '.join(_samplers())}"),
        ("--trials", int, 20, "how many, over all processes and calls"),
        (
            "--timeout",
            float,
            SUPPRESS,
            "seconds after which no further trial is begun; those that run are not broken off",
        ),
        (
            "--folds",
            int,
            SUPPRESS,
            "parts of the training data to validate on (default: the validation split)",
        ),
        ("--pruner", str, "median", "median ends trials that do worse than half of the others, or none"),
        (
            "--seed",
            int,
            SUPPRESS,
            "of trials and of draws (default: seed_everything of the configuration, else 0)",
        ),
    )
    _add_study(
        parser,
        metric="what is to get better",
        output="search",
        folder="the best, tables, picture and figures",
        dry_run="print the space, to be edited, and run nothing",
    )
    return parser


def _search(settings: dict[str, Any]) -> Callable[[], None]:
    from lightning_tricks.cli.search import SearchOrder, carry_out

    return partial(carry_out, SearchOrder(**settings))


def _modes() -> tuple[str, ...]:
    return "min", "max"


def _samplers() -> tuple[str, ...]:
    return "tpe", "random", "gp", "evolutionary", "grid"


GROUPS = Command("show the optimizer's parameter groups of a project", _groups_parser, _groups)
ABLATE = Command(
    "measure what each technique of a project brings and costs",
    _ablate_parser,
    _ablate,
    values={"--mode": _modes},
)
SEARCH = Command(
    "search for better settings of a project",
    _search_parser,
    _search,
    values={"--mode": _modes, "--sampler": _samplers, "--pruner": lambda: ("median", "none")},
)
