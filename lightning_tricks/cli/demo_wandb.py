"""The demo's runs in Weights & Biases: online where an account is configured, else in a local folder."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_tricks.core import checks
from lightning_tricks.core.extras import extra

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger
    from wandb import Run

__all__ = ["Tracking", "check_mode", "tracking"]

PROJECT = "lightning-tricks-demo"
_MODES = ("online", "offline", "disabled")


@dataclass
class Tracking:
    """Open runs by name, and how they were opened.

    Attributes:
        runs: One per arm of the comparison.
        mode: ``"online"``, ``"offline"`` or ``"disabled"``.
        why_offline: What kept an online run from starting; empty if nothing did.
    """

    runs: dict[str, Run]
    mode: Any
    why_offline: str = ""

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
            run.finish()

    def keep(self, folder: Path) -> list[str]:
        """Move the finished runs into ``folder`` if they are offline; return the lines to print."""
        if self.mode != "offline":
            return [f"{name}: {run.url}" for name, run in self.runs.items() if run.url]
        folder.mkdir(parents=True, exist_ok=True)
        paths = [str(shutil.move(run.settings.sync_dir, folder)) for run in self.runs.values()]
        reason = f" ({self.why_offline})" if self.why_offline else ""
        return [
            f"Both runs were logged offline{reason}; upload them with",
            shlex.join(["wandb", "sync", *paths]),
        ]


def check_mode() -> None:
    """Accept the environment variable ``WANDB_MODE``, if it is set.

    Raises:
        ValueError: If the demo cannot log in this mode.
    """
    if (mode := os.environ.get("WANDB_MODE")) is not None:
        checks.one_of("WANDB_MODE", mode, _MODES)


@contextmanager
def tracking(configs: Mapping[str, Mapping[str, Any]], folder: Path) -> Iterator[Tracking]:
    """Open a run for every name in ``configs``; if the block fails, close them as failed.

    Args:
        configs: The settings of each run.
        folder: Where W&B writes its files.
    """
    with extra("demo"):
        import wandb

    silent = wandb.Settings(silent=True, console="off", reinit="create_new", init_timeout=20)
    wandb.setup(silent)
    opened = Tracking({}, _mode())
    try:
        for name, config in configs.items():
            opened.runs[name] = _open(opened, silent, name=name, config=dict(config), dir=str(folder))
        yield opened
    except BaseException:
        for run in opened.runs.values():
            run.finish(exit_code=1)
        raise


def _mode() -> Any:
    """Return the mode that W&B's own settings ask for; offline where nothing is said and no key is known."""
    import wandb

    mode = wandb.setup().settings.mode
    unsaid = mode == "online" and "WANDB_MODE" not in os.environ
    return "offline" if unsaid and not wandb.login(prompt=False, verify=False) else mode


def _open(opened: Tracking, settings: Any, **options: Any) -> Run:
    import wandb

    project = os.environ.get("WANDB_PROJECT", PROJECT)
    try:
        run = wandb.init(project=project, mode=opened.mode, settings=settings, **options)
    except wandb.Error as error:
        if opened.mode != "online":
            raise
        opened.mode, opened.why_offline = "offline", str(error).partition("\n")[0]
        run = wandb.init(project=project, mode="offline", settings=settings, **options)
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return run
