"""What each technique costs per training step, against the plain run.

All variants are trained in one process, in turns and in a new random order every round: a few steps of the
demo's model on digits each. A step is timed from one batch's start to the next one's, so everything that
Lightning and the callbacks do in between counts; the first steps of every turn are left out. The ratio is
taken within a round, and its median over rounds is reported with the middle half of the rounds. The last two
rows are three techniques of ours, and the three of Lightning and torch that do the same.

    python -m benchmarks.overhead --rounds 30
"""

from __future__ import annotations

import io
import logging
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from rich.progress import track

import lightning_tricks as lt
from benchmarks.record import record, rounds_asked
from lightning_tricks.cli.demo_settings import Demo
from lightning_tricks.recipes.digits import DigitsClassifier, DigitsData
from tests.host_reads import HostReads

STEPS, SKIPPED, FEW = 24, 6, 8  # twice FEW stays within an epoch
DEMO, SCRATCH = Demo(), tempfile.TemporaryDirectory()
OURS = "GradientClip, WarmupCosine, EMAWeights"
THEIRS = "gradient_clip_val, CosineAnnealingLR, EMAWeightAveraging"
VARIANTS: dict[str, Callable[[], list[Callback]]] = {
    "plain": list,
    "GradientClip": lambda: [lt.GradientClip()],
    "WarmupCosine": lambda: [lt.WarmupCosine()],
    "EMAWeights": lambda: [lt.EMAWeights()],
    "ProgressiveUnfreeze": lambda: [lt.ProgressiveUnfreeze(stages=["*"])],
    "WeightFusion": lambda: [lt.WeightFusion(keep="always", update_batchnorm=False)],
    "all five": lambda: [callback for name in list(VARIANTS)[1:6] for callback in VARIANTS[name]()],
    OURS: lambda: [callback for name in OURS.split(", ") for callback in VARIANTS[name]()],
    THEIRS: lambda: [EMAWeightAveraging()],
}


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


class Scheduled(DigitsClassifier):
    """Has a schedule of torch's, counted in steps as Lightning does it."""

    def configure_optimizers(self) -> Any:
        """Return both."""
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def run(name: str, data: DigitsData, steps: int = STEPS) -> float:
    """Train ``steps`` steps of a variant and return the median time of one, in microseconds."""
    if name == THEIRS:
        return train(data, VARIANTS[name](), steps, kind=Scheduled, gradient_clip_val=1.0)
    return train(data, VARIANTS[name](), steps)


def train(
    data: DigitsData,
    callbacks: list[Callback],
    steps: int = STEPS,
    *,
    kind: type[DigitsClassifier] = DigitsClassifier,
    gradient_clip_val: float | None = None,
    **options: float,
) -> float:
    """Train ``steps`` steps and return the median time of one, in microseconds.

    ``options`` are those of SGD.
    """
    torch.manual_seed(0)
    clock = Clock()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[clock, *callbacks],
        default_root_dir=SCRATCH.name,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        gradient_clip_val=gradient_clip_val,
    )
    with redirect_stdout(io.StringIO()):  # what techniques print of themselves
        trainer.fit(kind(DEMO.network(10), **options), data)
    return clock.step_us()


def host_reads(name: str, data: DigitsData) -> float:
    """Return how many values a step of a variant reads back to the host, on steps that do not log."""
    counts = []
    for steps in (FEW, 2 * FEW):  # the difference leaves out what happens once
        with HostReads() as reads:
            run(name, data, steps)
        counts.append(reads.count)
    return (counts[1] - counts[0]) / FEW


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Return, for each variant, its step in µs, ratio to plain and extra host reads."""
    data = DEMO.data(1)
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for name in list(VARIANTS):  # the first fit of a process pays for everyone
        run(name, data)
    for _ in track(range(rounds), "rounds"):
        for name in random.sample(list(VARIANTS), len(VARIANTS)):
            times[name].append(run(name, data))
    plain_reads = host_reads("plain", data)
    return {name: _summary(times[name], times["plain"]) for name in VARIANTS} | {
        "host reads": {name: host_reads(name, data) - plain_reads for name in VARIANTS}
    }


def _summary(ours: list[float], plain: list[float]) -> dict[str, float]:
    ratios = [a / b for a, b in zip(ours, plain, strict=True)]
    extra = [a - b for a, b in zip(ours, plain, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "step_us": statistics.median(ours),
        "extra_us": statistics.median(extra),
        "ratio": middle,
        "ratio_low": low,
        "ratio_high": high,
    }


def table(result: dict[str, Any]) -> str:
    """Return the figures as a Markdown table."""
    lines = [
        "| | step, ms | extra per step, µs | ratio to plain (middle half of rounds) | host reads |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in VARIANTS:
        row, reads = result["variants"][name], result["variants"]["host reads"][name]
        spread = f"{row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f})"
        lines.append(
            f"| {name} | {row['step_us'] / 1000:.2f} | {row['extra_us']:.0f} | {spread} | {reads:+.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, write the figures as JSON, and put the table into its document."""
    rounds = rounds_asked(__doc__)
    torch.set_num_threads(2)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    result = {"rounds": rounds, "variants": measure(rounds)}
    record("overhead", result, table(result))


if __name__ == "__main__":
    main()
