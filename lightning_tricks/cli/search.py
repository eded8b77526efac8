"""``lightning-tricks search``: better settings for a LightningCLI project, of techniques and of all else."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lightning_tricks.cli.study_order import StudyOrder
from lightning_tricks.cli.trials_bar import trials_bar
from lightning_tricks.study.found import Found
from lightning_tricks.study.project import Project
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

__all__ = ["SearchOrder", "carry_out"]


@dataclass(frozen=True, kw_only=True)
class SearchOrder(StudyOrder):
    """What to search, checked as far as can be before any training.

    Raises:
        ModuleNotFoundError: If a package of the extra ``study`` is missing.
        OSError: If a file cannot be read.
        TypeError: If a setting is of another type.
        ValueError: If a setting is wrong.
    """

    output: str = "search"
    space: str | None = None
    sampler: str = "tpe"
    trials: int = 20
    timeout: float | None = None
    folds: int | None = None
    pruner: str = "median"
    seed: int | None = None
    search: Search = field(init=False)

    def __post_init__(self) -> None:
        """Check the settings and read configuration and space."""
        super().__post_init__()
        same = ("metric", "mode", "sampler", "trials", "timeout", "folds", "pruner")
        project = Project.read(self.config, needed=False, **self.classes)
        search = Search(
            project,
            None if self.space is None else Space.read(self.space),
            seed=project.seed if self.seed is None else self.seed,
            **{key: getattr(self, key) for key in same},
            wandb=self.group(),
            **self.place,
        )
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
    with order.shared(_HELP), _bar(order) as watch:
        found = order.search.run(watch)
    if order.workers > 1:  # which may have ended trials after this one's time was up
        found = order.search.so_far()
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
    points = f"of {search.space.size} possible" if search.space.size else "of infinitely many possible"
    print(f"# {search.wanted} trials {points}, kept in {shown(search.storage)}; nothing has been run")
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
    lines = [*search_notes(found), f"written: {', '.join(map(str, paths))}"]
    if order.timeout is not None and len(found.trials) < found.wanted:
        lines.insert(-1, f"After {order.timeout:g} s no further trial was begun; the same command goes on.")
    order.tell(found.plain(), search_tables(found), lines)
