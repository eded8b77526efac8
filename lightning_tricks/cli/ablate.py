"""``lightning-tricks ablate``: what each technique of a LightningCLI project brings, and what it costs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lightning_tricks.cli.study_order import StudyOrder
from lightning_tricks.cli.trials_bar import trials_bar
from lightning_tricks.study.ablation import Ablation, Progress
from lightning_tricks.study.effects import Effects
from lightning_tricks.study.project import Project
from lightning_tricks.study.ranges import OBSERVERS
from lightning_tricks.study.report import draw_effects, markdown, notes, rich_table
from lightning_tricks.study.storage import shown

__all__ = ["Order", "carry_out"]


@dataclass(frozen=True, kw_only=True)
class Order(StudyOrder):
    """What to measure, checked as far as can be before any training.

    Raises:
        ModuleNotFoundError: If a package of the extra ``study`` is missing.
        OSError: If a file cannot be read.
        ValueError: If a setting is wrong.
    """

    output: str = "ablation"
    seeds: int = 5
    techniques: list[str] | None = None
    ablation: Ablation = field(init=False)

    def __post_init__(self) -> None:
        """Check the settings and read the configuration."""
        super().__post_init__()
        project = Project.read(self.config, self.techniques, **self.classes)
        techniques = {
            name: made
            for name, made in project.techniques.items()
            if self.techniques is not None or name.partition("[")[0] not in OBSERVERS
        }
        if not techniques:
            given = ", ".join(project.techniques)
            raise ValueError(f"trainer.callbacks must hold techniques that change a run, got {given}")
        ablation = Ablation(
            project.build,
            techniques,
            seeds=self.seeds,
            metric=self.metric,
            mode=self.mode,  # type: ignore[arg-type]  # it checks that
            settings=project.settings,
            wandb=self.group(),
            **self.place,
        )
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
    with order.shared(_HELP), _bar(order) as watch:
        effects = order.ablation.run(watch)
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
    print(f"two steps before the first trial will show whether it trains and logs {order.ablation.metric}")


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
    lines = [*notes(effects), f"written: {', '.join(map(str, paths.values()))}"]
    order.tell(effects.plain(), [rich_table(effects)], lines)
