"""Runs in Weights & Biases: online where an account is configured, else in a local folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_tricks.core import checks
from lightning_tricks.study.effects import Effects
from lightning_tricks.study.report import table_rows

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger
    from wandb import Run

__all__ = ["Mode", "WandbGroup", "check_mode", "open_run", "silent"]

_MODES = ("online", "offline", "disabled")


@dataclass
class Mode:
    """How runs are opened.

    Attributes:
        mode: ``"online"``, ``"offline"`` or ``"disabled"``.
        why_offline: What kept an online run from starting; empty if nothing did.
    """

    mode: Any
    why_offline: str = ""

    @classmethod
    def asked(cls) -> Mode:
        """Return what W&B's own settings ask for; offline where nothing is said and no key is known."""
        import wandb

        mode = wandb.setup().settings.mode
        unsaid = mode == "online" and "WANDB_MODE" not in os.environ
        return cls("offline" if unsaid and not wandb.login(prompt=False, verify=False) else mode)


def check_mode() -> None:
    """Accept the environment variable ``WANDB_MODE``, if it is set.

    Raises:
        ValueError: If nothing can be logged in this mode.
    """
    if (mode := os.environ.get("WANDB_MODE")) is not None:
        checks.one_of("WANDB_MODE", mode, _MODES)


def silent() -> Any:
    """Return settings of a run that prints nothing, beside others in one process."""
    import wandb

    settings = wandb.Settings(silent=True, console="off", reinit="create_new", init_timeout=20)
    wandb.setup(settings)
    return settings


def open_run(opened: Mode, settings: Any, *, project: str, **options: Any) -> Run:
    """Open a run; offline, and so are those after it, if no server can be reached.

    Args:
        opened: How; is changed where it goes offline.
        settings: As :func:`silent` returns them.
        project: Where the variable ``WANDB_PROJECT`` names none.
        options: Of ``wandb.init``.
    """
    import wandb

    project = os.environ.get("WANDB_PROJECT", project)
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


@dataclass
class WandbGroup:
    """The runs of one study: one for each trial, and one with what came of them.

    Args:
        name: Of the group.
        project: To which they are logged.
        folder: In which W&B keeps its files.
    """

    name: str
    project: str = "lightning-tricks-study"
    folder: str | os.PathLike[str] = "."
    _mode: Mode | None = field(default=None, init=False, repr=False)

    @contextmanager
    def run(self, name: str, config: Mapping[str, Any]) -> Iterator[WandbLogger]:
        """Give a logger of a run of its own, which ends with the block; failed if that does."""
        from lightning.pytorch.loggers import WandbLogger

        settings = silent()
        self._mode = self._mode or Mode.asked()
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        options = {"name": name, "group": self.name, "config": dict(config), "dir": str(self.folder)}
        run = open_run(self._mode, settings, project=self.project, **options)
        try:
            yield WandbLogger(experiment=run)
        except BaseException:
            run.finish(exit_code=1)
            raise
        run.finish()

    def report(self, effects: Effects, picture: str | os.PathLike[str]) -> None:
        """Log what came of the trials, with a picture of it."""
        import wandb

        with self.run(f"{self.name}: effects", {"metric": effects.metric, "mode": effects.mode}) as logger:
            heads, *rows = table_rows(effects)
            table = wandb.Table(columns=list(heads), data=[list(row) for row in rows])
            logger.experiment.log({"effects": table, "figure": wandb.Image(str(picture))})
            gains = {row.name: row.alone.mean for row in effects.rows if row.alone is not None}
            logger.experiment.summary.update({f"gain/{name}": gain for name, gain in gains.items()})
