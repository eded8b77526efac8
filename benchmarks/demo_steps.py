"""Steps of the demo's model on digits, timed from one batch's start to the next one's."""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from contextlib import redirect_stdout
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from lightning_tricks.cli.demo_settings import Demo
from lightning_tricks.recipes.digits import DigitsClassifier, DigitsData

STEPS, SKIPPED = 24, 6
DEMO, SCRATCH = Demo(), tempfile.TemporaryDirectory()


class Clock(Callback):
    """Notes when each batch starts."""

    def __init__(self) -> None:
        """Start with none."""
        self.starts: list[int] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.starts.append(time.perf_counter_ns())

    def step_us(self) -> float:
        """Return the median time of a step, in microseconds."""
        gaps = [b - a for a, b in zip(self.starts, self.starts[1:], strict=False)]
        return statistics.median(gaps[SKIPPED:]) / 1000


def train(data: DigitsData, callbacks: list[Callback], steps: int = STEPS, **options: float) -> float:
    """Train ``steps`` steps and return the median time of one, in microseconds.

    ``options`` are those of SGD.
    """
    clock = Clock()
    with redirect_stdout(io.StringIO()):  # what techniques print of themselves
        fit(data, [clock, *callbacks], steps, **options)
    return clock.step_us()


def fit(
    data: DigitsData,
    callbacks: list[Callback],
    steps: int,
    *,
    kind: type[DigitsClassifier] = DigitsClassifier,
    gradient_clip_val: float | None = None,
    **options: float,
) -> None:
    """Train ``steps`` steps."""
    torch.manual_seed(0)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=callbacks,
        default_root_dir=SCRATCH.name,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        gradient_clip_val=gradient_clip_val,
    )
    trainer.fit(kind(DEMO.network(10), **options), data)
