"""Runs of all techniques that are broken off in one of many ways, each in a process of its own.

A process is forked, because starting one anew takes longer than the run.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor

import lightning_tricks as lt
from tests.toys import Loader, StopError, Toy, trainer

HOOKS = (
    "on_train_batch_start",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_validation_batch_end",
    "on_validation_end",
    "on_train_epoch_end",
    "on_save_checkpoint",
)


class Drops(Toy):
    """Draws its dropout from the random state as it comes, and logs a mean over each epoch."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss


class Lines(Logger):
    """Appends a line of JSON for each call, at once."""

    name, version = "lines", 0

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        with self.path.open("a") as file:
            # The break comes first, so that a line which a full disk cut off spoils no other.
            file.write("\n" + json.dumps({"step": step, **metrics}))


@dataclass(frozen=True)
class Interruption:
    """How and where a run is broken off.

    Attributes:
        way: ``"kill"`` (no time to clean up), ``"terminate"``, ``"raise"``, ``"write"`` (killed while a
            checkpoint is being written) or ``"full"`` (no file may grow any more).
        hook: At which hook; for ``"write"`` always a checkpoint.
        count: At which call of it, from 1.
    """

    way: str
    hook: str
    count: int


class Interrupts(Callback):
    """Breaks the run off."""

    def __init__(self, interruption: Interruption) -> None:
        self.what, self.seen = interruption, 0
        setattr(self, interruption.hook, self._called)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.what.way == "write":
            write = trainer.strategy.save_checkpoint
            trainer.strategy.save_checkpoint = lambda *args, **options: self._write(write, *args, **options)

    def _called(self, *_: Any) -> None:
        self.seen += 1
        if self.seen != self.what.count:
            return
        if self.what.way == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.what.way == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        elif self.what.way == "raise":
            raise StopError
        elif self.what.way == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))

    def _write(self, write: Callable[..., None], *args: Any, **options: Any) -> None:
        if self.seen >= self.what.count:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process
            signal.setitimer(signal.ITIMER_REAL, 1e-4 * (1 + self.what.count % 10))
        write(*args, **options)


def techniques() -> list[Callback]:
    """Return all techniques, with settings that change the run throughout."""
    return [
        lt.GradientClip(max_norm="0.5 * linear(to=0.1)"),
        lt.WarmupCosine(warmup="20%", final=0.1),
        lt.EMAWeights(decay=0.9, start=2),
        lt.ProgressiveUnfreeze(stages=["head", "body.1", "body.0"], at="4 steps"),
        lt.WeightFusion(collect=lt.EverySteps(3, k=2), monitor="val_loss", mode="min", keep="always"),
        lt.ExactResume(),
    ]


def train(folder: Path, interruption: Interruption | None) -> None:
    """Train in this process, from the latest checkpoint in ``folder`` on, and leave ``final.ckpt`` there."""
    seed_everything(5, verbose=False)
    saver = ModelCheckpoint(
        folder, "{step}", every_n_train_steps=2, save_top_k=-1, save_on_train_epoch_end=False
    )
    callbacks = [*techniques(), saver]
    if interruption is not None:
        callbacks.append(Interrupts(interruption))
    found = sorted(folder.glob("step=*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    runner = trainer(*callbacks, default_root_dir=folder, logger=Lines(folder / "log.jsonl"))
    latest = found[-1] if found else None
    runner.fit(Drops(), Loader(), Loader(2, seed=9, fixed=True), ckpt_path=latest)
    runner.save_checkpoint(folder / "final.ckpt")


def run(folder: Path, interruption: Interruption | None = None, *, patience: float = 60.0) -> bool:
    """Train in a process of its own; return whether it came to the end."""
    folder.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            sys.stdout = sys.stderr = (folder / "output.txt").open("a")
            train(folder, interruption)
            code = 0
        except BaseException:
            with suppress(OSError):  # no file may grow any more
                traceback.print_exc()
                sys.stderr.flush()
        finally:
            os._exit(code)
    until = time.monotonic() + patience
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status == 0
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f"the run in {folder} did not end: {(folder / 'output.txt').read_text()[-3000:]}")
