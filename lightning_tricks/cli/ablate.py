"""``lightning-tricks ablate``: what each technique of a LightningCLI project brings, and what it costs."""

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
from lightning_tricks.study.ablation import Ablation, Progress
from lightning_tricks.study.effects import Effects
from lightning_tricks.study.project import Project
from lightning_tricks.study.report import draw_effects, markdown, notes, rich_table
from lightning_tricks.study.storage import shown
from lightning_tricks.study.wandb_runs import WandbGroup, check_mode

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["EXAMPLES", "Order", "add_options", "carry_out"]

EXAMPLES = """\
examples:
  lightning-tricks ablate config.yaml --dry-run
  lightning-tricks ablate config.yaml
  lightning-tricks ablate config.yaml techniques.yaml --metric val_accuracy --mode max --seeds 10
  lightning-tricks ablate config.yaml --techniques "[EMAWeights, GradientClip]" --workers 2
  lightning-tricks ablate config.yaml --storage postgresql://me@host/trials --name resnet

Interrupted, the same call goes on. Called again meanwhile, here or on another machine that sees the same
storage, it joins in.
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
        ("--metric", str, "val_loss", "what is compared, logged in validation"),
        ("--mode", str, "min", "min if less of it is better, or max"),
        ("--seeds", int, 5, "how often each arm is trained"),
        ("--output", str, "ablation", "folder for table, picture and figures, and for the trials' file"),
        ("--workers", int, 1, "trials that run at once, each in a process of its own"),
        (
            "--techniques",
            list[str],
            SUPPRESS,
            "callbacks of the config, by class (default: all of ours)",
        ),
        (
            "--storage",
            str,
            SUPPRESS,
            "file or URL of a database (default: OUTPUT/study.journal)",
        ),
        ("--name", str, SUPPRESS, "of the study in its storage (default: the name of the first file)"),
    )
    for name, kind, default, text in options:
        parser.add_argument(name, type=kind, default=default, help=text)
    parser.add_argument("--wandb", action="store_true", help="log each trial to Weights & Biases, in a group")
    parser.add_argument("--dry-run", action="store_true", help="list the trials and run none")
    parser.add_argument("--json", action="store_true", help="print JSON in the place of tables")


@dataclass(frozen=True)
class Order:
    """What to measure, checked as far as can be before any training.

    Raises:
        ModuleNotFoundError: If a package of the extra ``study`` is missing.
        OSError: If a file cannot be read.
        ValueError: If a setting is wrong.
    """

    config: list[str]
    metric: str = "val_loss"
    mode: str = "min"
    seeds: int = 5
    output: str = "ablation"
    workers: int = 1
    techniques: list[str] | None = None
    storage: str | None = None
    name: str | None = None
    wandb: bool = False
    dry_run: bool = False
    json: bool = False
    ablation: Ablation = field(init=False)

    def __post_init__(self) -> None:
        """Check the settings and read the configuration."""
        with extra("study"):
            import matplotlib.figure  # noqa: F401  # found missing now, and not when all is measured
            import optuna  # noqa: F401  # this too
            import scipy.stats  # noqa: F401  # and this
        checks.whole("workers", self.workers, 1)
        project = Project.read(self.config, self.techniques)
        ablation = Ablation(
            project.build,
            project.techniques,
            seeds=self.seeds,
            metric=self.metric,
            mode=self.mode,  # type: ignore[arg-type]  # it checks that
            name=self.name or Path(self.config[0]).stem,
            storage=self.storage or Path(self.output) / "study.journal",
            settings=project.settings,
        )
        if self.wandb:
            check_mode()
            ablation.wandb = WandbGroup(ablation.name, folder=self.output)
        object.__setattr__(self, "ablation", ablation)


def carry_out(order: Order) -> None:
    """Run the trials and show what came of them.

    Raises:
        OSError: If a file or the storage is out of reach.
        RefusedError: If the configuration cannot be trained, or is not that of the study.
    """
    if order.dry_run:
        _show_plan(order)
        return
    try:
        with workers(order.workers - 1, _HELP, _plain(order)), _bar(order) as watch:
            effects = order.ablation.run(watch)
    except (TypeError, ValueError) as error:
        raise RefusedError(str(error)) from error
    _write(order, effects)


def _show_plan(order: Order) -> None:
    plans = order.ablation.plans
    if order.json:
        print(json.dumps({"trials": [plan._asdict() for plan in plans.values()]}))
        return
    arms = {plan.arm: plan.names for plan in plans.values()}
    for arm, names in arms.items():
        print(f"{arm}: {', '.join(names) or 'no technique'}")
    storage = shown(order.ablation.storage)
    print(f"{len(arms)} arms, {len(plans)} trials in {storage}; nothing has been run")


def _plain(order: Order) -> dict[str, Any]:
    return {entry.name: getattr(order, entry.name) for entry in fields(order) if entry.init}


_HELP = "from lightning_tricks.cli.ablate import help_out; help_out()"


def help_out() -> None:
    """Work on the study whose order stands on standard input as JSON."""
    Order(**json.load(sys.stdin)).ablation.run()


@contextmanager
def _bar(order: Order) -> Iterator[Callable[[Progress], None]]:
    """Show how many trials are done, and what runs now."""
    with trials_bar(len(order.ablation.plans), hidden=order.json) as show:

        def watch(found: Progress) -> None:
            died = f"{found.dead} died; " if found.dead else ""
            show(found.done + found.dead, f"{died}{'; '.join(found.running)}")

        yield watch


def _write(order: Order, effects: Effects) -> None:
    output = Path(order.output)
    output.mkdir(parents=True, exist_ok=True)
    paths = {kind: output / f"ablation.{kind}" for kind in ("md", "json", "png")}
    paths["md"].write_text(markdown(effects), "utf-8")
    paths["json"].write_text(json.dumps(effects.plain(), indent=1), "utf-8")
    draw_effects(effects, paths["png"])
    if order.ablation.wandb is not None:
        order.ablation.wandb.report(effects, paths["png"])
    if order.json:
        print(json.dumps(effects.plain()))
        return
    console = Console(file=sys.stdout)
    console.print(rich_table(effects))
    for line in [*notes(effects), f"written: {', '.join(map(str, paths.values()))}"]:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
