"""What ``ablate`` and ``search`` have in common: the options of a study, its processes and its printing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from lightning_tricks.cli.named_objects import classes_named
from lightning_tricks.cli.refusal import RefusedError
from lightning_tricks.cli.terminal import terminal
from lightning_tricks.cli.workers import workers
from lightning_tricks.core import checks
from lightning_tricks.core.extras import extra
from lightning_tricks.study.wandb_runs import WandbGroup, check_mode

__all__ = ["StudyOrder"]


@dataclass(frozen=True, kw_only=True)
class StudyOrder:
    """A study of a project.

    Raises:
        ModuleNotFoundError: If a package of the extra ``study`` is missing.
        ValueError: If a setting is wrong.
    """

    config: list[str]
    model: str | None = None
    data: str | None = None
    metric: str = "val_loss"
    mode: str | None = None
    output: str
    workers: int = 1
    storage: str | None = None
    name: str | None = None
    wandb: bool = False
    dry_run: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        """Check what all studies need."""
        with extra("study"):
            import optuna  # noqa: F401  # found missing now, and not when all is measured
            import scipy.stats  # noqa: F401  # this too

            if not self.dry_run:
                import matplotlib.figure  # noqa: F401  # and this
        checks.whole("workers", self.workers, 1)

    @property
    def classes(self) -> dict[str, Any]:
        """Those of the model and the data, where the configuration has none."""
        return classes_named(self.model, self.data)

    @property
    def place(self) -> dict[str, Any]:
        """Name and storage of the study."""
        name = self.name or Path(self.config[0]).stem
        return {"name": name, "storage": self.storage or Path(self.output) / "study.journal"}

    def group(self) -> WandbGroup | None:
        """Return where trials are logged; ``None`` for nowhere.

        Raises:
            ValueError: If Weights & Biases does not know the mode that it is told.
        """
        if not self.wandb:
            return None
        check_mode()
        return WandbGroup(self.place["name"], folder=self.output, tell=_tell)

    @contextmanager
    def shared(self, program: str) -> Iterator[None]:
        """Let further processes run ``program`` on the same study meanwhile.

        Raises:
            RefusedError: If the configuration cannot be trained, or is not that of the study.
        """
        settings = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.init}
        try:
            with workers(self.workers - 1, program, settings):
                yield
        except (TypeError, ValueError) as error:
            raise RefusedError(str(error)) from error

    def tell(self, found: dict[str, Any], tables: Iterable[RenderableType], lines: Iterable[str]) -> None:
        """Print ``found`` as JSON if that is asked for, else tables and the lines after them."""
        if self.json:
            print(json.dumps(found))
            return
        console = terminal()
        for table in tables:
            console.print(table)
        for line in lines:
            console.print(line, soft_wrap=True, markup=False)


def _tell(message: str) -> None:
    print(f"lightning-tricks: {message}", file=sys.stderr)
