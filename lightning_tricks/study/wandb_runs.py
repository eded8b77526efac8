"""Runs in Weights & Biases: online where an account is configured, else in a local folder."""

from __future__ import annotations

import os
import shlex
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_tricks.core import checks
from lightning_tricks.study.effects import Effects
from lightning_tricks.study.report import table_rows
from lightning_tricks.study.working import said

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger
    from wandb import Run

__all__ = ["Mode", "WandbGroup", "check_mode", "close_run", "open_run", "quiet_settings", "sync_line"]

_MODES = ("online", "offline", "disabled")
_FINISH_SECONDS = 60  # W&B would wait for hours for a server that is gone, and the study with it


@dataclass
class Mode:
    """How runs are opened.

    Attributes:
        mode: ``"online"``, ``"offline"`` or ``"disabled"``.
        why_offline: What keeps runs from the server; empty if nothing does, or they shall be offline.
        kept: Folders of the runs of which not all is on the server.
    """

    mode: Any
    why_offline: str = ""
    kept: list[str] = field(default_factory=list)

    @classmethod
    def asked(cls) -> Mode:
        """Return what W&B's own settings ask for; offline where nothing is said and no key is known."""
        import wandb

        settings = wandb.setup().settings
        if settings.mode != "online" or "WANDB_MODE" in os.environ:
            return cls(settings.mode)
        silent, settings.silent = settings.silent, True  # else it asks the server for the name of the account
        known = wandb.login(prompt=False, verify=False)
        settings.silent = silent
        return cls("online") if known else cls("offline", "no account is configured")


def check_mode() -> None:
    """Accept the environment variable ``WANDB_MODE``, if it is set.

    Raises:
        ValueError: If nothing can be logged in this mode.
    """
    if (mode := os.environ.get("WANDB_MODE")) is not None:
        checks.one_of("WANDB_MODE", mode, _MODES)


def quiet_settings() -> Any:
    """Return settings of a run that prints warnings alone, beside others in one process."""
    import wandb

    settings = wandb.Settings(
        show_info=False, console="off", reinit="create_new", init_timeout=20, finish_timeout_raises=True
    )
    if "WANDB_FINISH_TIMEOUT" not in os.environ:
        settings.finish_timeout = _FINISH_SECONDS
    wandb.setup(settings)
    settings.silent = True  # for runs alone, whose process prints at their end; W&B could not warn either
    return settings


def open_run(opened: Mode, settings: Any, *, project: str, **options: Any) -> Run:
    """Open a run; offline, and so are those after it, if no server can be reached.

    Args:
        opened: How; is changed where it goes offline.
        settings: As :func:`quiet_settings` returns them.
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
    if opened.mode == "offline":
        opened.kept.append(run.settings.sync_dir)
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return run


def close_run(opened: Mode, run: Run, *, failed: bool = False) -> bool:
    """End a run; those after it are offline if the server does not take in time what is left of it.

    Args:
        opened: How; is changed where it goes offline.
        run: That :func:`open_run` returned.
        failed: Whether it ends by an error.

    Returns:
        Whether W&B has taken it.
    """
    try:
        run.finish(exit_code=int(failed))
        return True
    except TimeoutError:
        why = f"uploading took more than {run.settings.finish_timeout:g} s"
    except Exception as error:  # of any kind if W&B's own process has died; what was trained is still good
        why = said(error)
    opened.mode, opened.why_offline = "offline", why
    opened.kept.append(run.settings.sync_dir)
    return False


def sync_line(paths: Sequence[str]) -> str:
    """Return the command that uploads runs from their folders."""
    offline = all(Path(path).name.startswith("offline-") for path in paths)
    # Without the option it leaves those out that were begun online.
    return shlex.join(["wandb", "sync", *([] if offline else ["--include-online"]), *paths])


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=2)


@dataclass
class WandbGroup:
    """The runs of one study: one for each trial, and one with what came of them.

    No trial waits for a server that is gone, or is lost by it: runs go on offline, which is told.

    Args:
        name: Of the group.
        project: To which they are logged.
        folder: In which W&B keeps its files.
        tell: Gets what keeps runs from the server, and how to upload them; by default, to warn.
    """

    name: str
    project: str = "lightning-tricks-study"
    folder: str | os.PathLike[str] = "."
    tell: Callable[[str], None] = _warn
    _mode: Mode | None = field(default=None, init=False, repr=False)
    _told: bool = field(default=False, init=False, repr=False)

    @contextmanager
    def run(self, name: str, config: Mapping[str, Any]) -> Iterator[WandbLogger]:
        """Give a logger of a run of its own, which ends with the block; failed if that does."""
        from lightning.pytorch.loggers import WandbLogger

        settings = quiet_settings()
        self._mode = self._mode or Mode.asked()
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        options = {"name": name, "group": self.name, "config": dict(config), "dir": str(self.folder)}
        run = open_run(self._mode, settings, project=self.project, **options)
        if self._mode.why_offline and not self._told:
            self._told = True
            begin = f"Weights & Biases logs runs of {self.name!r} offline ({self._mode.why_offline})"
            folder = shlex.quote(os.fspath(self.folder))
            self.tell(f"{begin}; upload them with: wandb sync {folder}/wandb/offline-run-*")
        failed = True
        try:
            yield WandbLogger(experiment=run)
            failed = False
        finally:
            if not close_run(self._mode, run, failed=failed):
                begin = f"not all of the run {name!r} is in Weights & Biases ({self._mode.why_offline})"
                self.tell(f"{begin}; upload it with: {sync_line([run.settings.sync_dir])}")

    def conclude(
        self,
        kind: str,
        config: Mapping[str, Any],
        *,
        shown: str,
        rows: Iterable[Sequence[Any]],
        picture: str | os.PathLike[str],
        summary: Mapping[str, Any],
    ) -> None:
        """Log what came of the trials, as a run of its own.

        Args:
            kind: What the run is called after the group.
            config: Of the run.
            shown: What the table shows.
            rows: Of the table; its heads first.
            picture: A file.
            summary: Numbers by name.
        """
        import wandb

        heads, *cells = map(list, rows)
        try:
            with self.run(f"{self.name}: {kind}", config) as logger:
                table, figure = wandb.Table(columns=heads, data=cells), wandb.Image(str(picture))
                logger.experiment.log({shown: table, "figure": figure})
                logger.experiment.summary.update(dict(summary))
        except wandb.Error as error:  # tables are announced to the server before they are uploaded
            self.tell(f"the table of {shown} is not in Weights & Biases ({said(error)})")

    def report(self, effects: Effects, picture: str | os.PathLike[str]) -> None:
        """Log what came of the trials of an ablation, with a picture of it."""
        gains = {f"gain/{row.name}": row.alone.mean for row in effects.rows if row.alone is not None}
        config, rows = {"metric": effects.metric, "mode": effects.mode}, table_rows(effects)
        self.conclude("effects", config, shown="effects", rows=rows, picture=picture, summary=gains)
