"""The demo's runs in Weights & Biases: online where an account is configured, else in a local folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_tricks.study.wandb_runs import Mode, close_run, open_run, quiet_settings, sync_line

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger
    from wandb import Run

__all__ = ["Tracking", "tracking"]

PROJECT = "lightning-tricks-demo"


@dataclass
class Tracking:
    """Open runs by name, and how they were opened.

    Attributes:
        runs: One per arm of the comparison.
        how: Online, offline or not at all.
    """

    runs: dict[str, Run]
    how: Mode

    def loggers(self, name: str, phases: int) -> list[Logger]:
        """Return a logger for each phase of a run; their metrics' names begin with ``phase1``, ..."""
        from lightning.pytorch.loggers import WandbLogger

        run = self.runs[name]
        return [WandbLogger(experiment=run, prefix=f"phase{phase + 1}") for phase in range(phases)]

    def finish(self, figure: Path, summaries: Mapping[str, Mapping[str, float]]) -> None:
        """Log the figure and the final numbers to every run, and close it."""
        import wandb

        for name, run in self.runs.items():
            run.log({"figure": wandb.Image(str(figure))})
            run.summary.update(dict(summaries[name]))
            close_run(self.how, run)

    def keep(self, folder: Path) -> list[str]:
        """Move the files of the finished runs into ``folder``; return the lines to print."""
        places = {}
        for run in self.runs.values():
            if (path := Path(run.settings.sync_dir)).exists():
                folder.mkdir(parents=True, exist_ok=True)
                places[str(path)] = str(shutil.move(path, folder))
        lines = [f"{name}: {run.url}" for name, run in self.runs.items() if not run.offline and run.url]
        if not self.how.kept:
            return lines
        what = "Not all runs are online" if lines else "Both runs were logged offline"
        reason = f" ({self.how.why_offline})" if self.how.why_offline else ""
        sync = sync_line([places[path] for path in self.how.kept])
        return [*lines, f"{what}{reason}; upload them with", sync]


@contextmanager
def tracking(configs: Mapping[str, Mapping[str, Any]], folder: Path) -> Iterator[Tracking]:
    """Open a run for every name in ``configs``; if the block fails, close them as failed.

    Args:
        configs: The settings of each run.
        folder: Where W&B writes its files.
    """
    settings = quiet_settings()
    opened = Tracking({}, Mode.asked())
    try:
        for name, config in configs.items():
            options = {"name": name, "config": dict(config), "dir": str(folder)}
            opened.runs[name] = open_run(opened.how, settings, project=PROJECT, **options)
        yield opened
    except BaseException:
        for run in opened.runs.values():
            close_run(opened.how, run, failed=True)
        raise
