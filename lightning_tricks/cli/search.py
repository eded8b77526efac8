"""``lightning-tricks search``: better settings for a LightningCLI project, of techniques and of all else."""

from __future__ import annotations

import json
import sys
from argparse import SUPPRESS
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lightning_tricks.cli.refusal import RefusedError
from lightning_tricks.cli.trials_bar import trials_bar
from lightning_tricks.cli.workers import workers
from lightning_tricks.core import checks
from lightning_tricks.core.extras import extra
from lightning_tricks.study.found import Found
from lightning_tricks.study.project import Project
from lightning_tricks.study.sampling import SAMPLERS
from lightning_tricks.study.search import Search, SearchProgress
from lightning_tricks.study.search_report import (
    draw_search,
    log_search,
    search_markdown,
    search_notes,
    search_tables,
)
from lightning_tricks.study.space import Space
from lightning_tricks.study.storage import shown
from lightning_tricks.study.wandb_runs import WandbGroup, check_mode

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["EXAMPLES", "SearchOrder", "add_options", "carry_out"]

EXAMPLES = """\
examples:
  lightning-tricks search config.yaml --dry-run > space.yaml
  lightning-tricks search config.yaml
  lightning-tricks search config.yaml --space space.yaml --metric val_accuracy --mode max --trials 50
  lightning-tricks search config.yaml --sampler gp --folds 5 --timeout 600
  lightning-tricks search config.yaml --storage postgresql://me@host/trials --workers 2

a space.yaml:
  model.init_args.lr: {low: 0.001, high: 1.0, log: true}
  trainer.max_epochs: [10, 20]
  techniques:
    EMAWeights:
      optional: true
      decay: [0.9, 0.99, 0.999]

Interrupted, the same call goes on. Called again meanwhile, here or on another machine that sees the same
storage, it joins in. The best is written as OUTPUT/best.yaml, which LightningCLI runs:
  python train.py fit --config search/best.yaml
"""


def add_options(parser: ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    parser.add_argument(
        "config",
        type=str,
        nargs="+",
        help="YAML of LightningCLI, with class_path for model and data; of several files, later ones add to "
        "earlier ones",
    )
    options: tuple[tuple[str, Any, Any, str], ...] = (
        (
            "--space",
            str,
            SUPPRESS,
            "YAML of what may vary (default: techniques, within their recommended ranges)",
        ),
        ("--metric", str, "val_loss", "what is to get better, logged in validation"),
        ("--mode", str, "min", "min if less of it is better, or max"),
        ("--sampler", str, "tpe", f"what draws: {', '.join(SAMPLERS)}"),
        ("--trials", int, 20, "how many, over all processes and calls"),
        ("--timeout", float, SUPPRESS, "seconds after which no further trial is begun"),
        (
            "--folds",
            int,
            SUPPRESS,
            "parts of the training data to validate on (default: the validation split)",
        ),
        ("--pruner", str, "median", "median ends trials that do worse than half of the others, or none"),
        ("--seed", int, 0, "of trials and of draws"),
        (
            "--output",
            str,
            "search",
            "folder for the best, tables, picture and figures, and for the trials' file",
        ),
        ("--workers", int, 1, "trials that run at once, each in a process of its own"),
        ("--storage", str, SUPPRESS, "file or URL of a database (default: OUTPUT/study.journal)"),
        ("--name", str, SUPPRESS, "of the study in its storage (default: the name of the first file)"),
    )
    for name, kind, default, text in options:
        parser.add_argument(name, type=kind, default=default, help=text)
    parser.add_argument("--wandb", action="store_true", help="log each trial to Weights & Biases, in a group")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the space, to be edited, and run nothing"
    )
    parser.add_argument("--json", action="store_true", help="print JSON in the place of tables")


@dataclass(frozen=True)
class SearchOrder:
    """What to search, checked as far as can be before any training.

    Raises:
        ModuleNotFoundError: If a package of the extra ``study`` is missing.
        OSError: If a file cannot be read.
        TypeError: If a setting is of another type.
        ValueError: If a setting is wrong.
    """

    config: list[str]
    space: str | None = None
    metric: str = "val_loss"
    mode: str = "min"
    sampler: str = "tpe"
    trials: int = 20
    timeout: float | None = None
    folds: int | None = None
    pruner: str = "median"
    seed: int = 0
    output: str = "search"
    workers: int = 1
    storage: str | None = None
    name: str | None = None
    wandb: bool = False
    dry_run: bool = False
    json: bool = False
    search: Search = field(init=False)

    def __post_init__(self) -> None:
        """Check the settings and read configuration and space."""
        with extra("study"):
            import matplotlib.figure  # noqa: F401  # found missing now, and not when all is measured
        checks.whole("workers", self.workers, 1)
        same = ("metric", "mode", "sampler", "trials", "timeout", "folds", "pruner", "seed")
        search = Search(
            Project.read(self.config, needed=False),
            None if self.space is None else Space.read(self.space),
            **{key: getattr(self, key) for key in same},
            name=self.name or Path(self.config[0]).stem,
            storage=self.storage or Path(self.output) / "study.journal",
        )
        if self.wandb:
            check_mode()
            search.wandb = WandbGroup(search.name, folder=self.output)
        object.__setattr__(self, "search", search)


def carry_out(order: SearchOrder) -> None:
    """Run the trials and show what came of them.

    Raises:
        OSError: If a file or the storage is out of reach.
        RefusedError: If the configuration cannot be trained, or is not that of the study.
    """
    if order.dry_run:
        _show_space(order)
        return
    settings = {entry.name: getattr(order, entry.name) for entry in fields(order) if entry.init}
    try:
        with workers(order.workers - 1, _HELP, settings), _bar(order) as watch:
            found = order.search.run(watch)
        if order.workers > 1:  # which may have ended trials after this one's time was up
            found = order.search.so_far()
    except (TypeError, ValueError) as error:
        raise RefusedError(str(error)) from error
    _write(order, found)


_HELP = "from lightning_tricks.cli.search import help_out; help_out()"


def help_out() -> None:
    """Work on the study whose order stands on standard input as JSON."""
    SearchOrder(**json.load(sys.stdin)).search.run()


def _show_space(order: SearchOrder) -> None:
    search = order.search
    assert isinstance(search.space, Space)
    if order.json:
        print(json.dumps({"space": search.space.plain(), "default": search.default, "trials": search.wanted}))
        return
    points = f"{search.space.size} points" if search.space.size else "points without end"
    print(f"# {search.wanted} trials of {points}, in {shown(search.storage)}; nothing has been run")
    print(search.space.to_yaml(), end="")


@contextmanager
def _bar(order: SearchOrder) -> Iterator[Callable[[SearchProgress], None]]:
    """Show how many trials have ended, and the best so far."""
    with trials_bar(order.search.wanted, hidden=order.json) as show:

        def watch(found: SearchProgress) -> None:
            show(found.ended, "" if found.best is None else f"best {order.metric} {found.best:.4g}")

        yield watch


def _write(order: SearchOrder, found: Found) -> None:
    import yaml  # type: ignore[import-untyped]  # its types are another package

    output = Path(order.output)
    output.mkdir(parents=True, exist_ok=True)
    paths = [output / name for name in ("search.md", "search.json", "search.png")]
    paths[0].write_text(search_markdown(found), "utf-8")
    paths[1].write_text(json.dumps(found.plain(), indent=1), "utf-8")
    draw_search(found, paths[2])
    if order.search.wandb is not None:
        log_search(order.search.wandb, found, paths[2])
    if found.best is not None:
        config = order.search.config(found.best)
        (output / "best.yaml").write_text(yaml.safe_dump(config, sort_keys=False), "utf-8")
        paths.insert(0, output / "best.yaml")
    if order.json:
        print(json.dumps(found.plain()))
        return
    console = Console(file=sys.stdout)
    for table in search_tables(found):
        console.print(table)
    for line in [*search_notes(found), f"written: {', '.join(map(str, paths))}"]:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
