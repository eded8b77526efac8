"""What each technique costs per training step, against the plain run.

All variants train the demo's model on digits in one process, side by side: each makes two steps and hands
over to the next, in a new random order every round. So a machine whose speed changes from second to second
meets all of them alike. Gradients are clipped to the demo's norm, which some steps exceed. A step is timed
from one batch's start to the next one's, so everything that Lightning and the callbacks do in between counts.
The ratio is taken within a round, and its median over rounds is reported with the interval that holds it in
95 of 100 cases. The last three rows are three of our techniques, the same by hand with torch's functions, and
those of Lightning and torch that do the same.

    python -m benchmarks.overhead --rounds 400
"""

from __future__ import annotations

import io
import logging
import math
import random
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from rich.console import Console
from rich.progress import track

import lightning_tricks as lt
from benchmarks.demo_steps import DEMO, STEPS, Clock, fit
from benchmarks.record import record, rounds_asked
from lightning_tricks.recipes.digits import DigitsClassifier
from tests.host_reads import HostReads

FEW, TURN = 8, 2  # twice FEW stays within an epoch
OURS = "GradientClip, WarmupCosine, EMAWeights"
BY_HAND = "the same three by hand"
THEIRS = "gradient_clip_val, CosineAnnealingLR, EMAWeightAveraging"
VARIANTS: dict[str, Callable[[], list[Callback]]] = {
    "plain": list,
    "GradientClip": lambda: [lt.GradientClip(max_norm=DEMO.max_norm)],
    "WarmupCosine": lambda: [lt.WarmupCosine()],
    "EMAWeights": lambda: [lt.EMAWeights()],
    "ProgressiveUnfreeze": lambda: [lt.ProgressiveUnfreeze(stages=["*"])],
    "WeightFusion": lambda: [lt.WeightFusion(keep="always", update_batchnorm=False)],
    "all five": lambda: [callback for name in list(VARIANTS)[1:6] for callback in VARIANTS[name]()],
    OURS: lambda: [callback for name in OURS.split(", ") for callback in VARIANTS[name]()],
    BY_HAND: lambda: [ByHand()],
    THEIRS: lambda: [EMAWeightAveraging()],
}


class ByHand(Callback):
    """What clipping, a schedule and an average of the weights take, with nothing else around them."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.weights = list(pl_module.parameters())
        self.average = [weight.detach().clone() for weight in self.weights]
        self.rates = [group["lr"] for group in trainer.optimizers[0].param_groups]

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        torch.nn.utils.clip_grad_norm_(self.weights, DEMO.max_norm)
        share = (1.0 + math.cos(math.pi * trainer.global_step / trainer.max_steps)) / 2.0
        for group, rate in zip(optimizer.param_groups, self.rates, strict=True):
            group["lr"] = share * rate

    @torch.no_grad()
    def on_train_batch_end(self, *_: Any) -> None:
        torch._foreach_lerp_(self.average, self.weights, 0.001)


class Turns(Callback):
    """Notes when each batch starts, and lets the others train after so many."""

    def __init__(self) -> None:
        """Begin with the turn of others."""
        self.starts = [0] * TURN

    def on_train_batch_start(self, *_: Any) -> None:
        self.starts.append(time.perf_counter_ns())
        if len(self.starts) > TURN:
            getcurrent().parent.switch()
            self.starts = [time.perf_counter_ns()]

    def step_us(self) -> float:
        """Return the mean time of a step in the last turn, in microseconds."""
        return (self.starts[-1] - self.starts[0]) / TURN / 1000


class Scheduled(DigitsClassifier):
    """Has a schedule of torch's, counted in steps as Lightning does it."""

    def configure_optimizers(self) -> Any:
        """Return both."""
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def run(name: str, clock: Callback, steps: int, clipped: dict[str, float]) -> None:
    """Train ``steps`` steps of a variant, and note the share of them in which ours clipped."""
    data, callbacks = DEMO.data(1), [clock, *VARIANTS[name]()]
    if name == THEIRS:
        fit(data, callbacks, steps, kind=Scheduled, gradient_clip_val=DEMO.max_norm)
    else:
        fit(data, callbacks, steps)
    for each in callbacks:
        if isinstance(each, lt.GradientClip):
            clipped[name] = each.outcome()["clipped"] / steps


def host_reads(name: str) -> float:
    """Return how many values a step of a variant reads back to the host, on steps that do not log."""
    counts = []
    for steps in (FEW, 2 * FEW):  # the difference leaves out what happens once
        with HostReads() as reads, redirect_stdout(io.StringIO()):
            run(name, Clock(), steps, {})
        counts.append(reads.count)
    return (counts[1] - counts[0]) / FEW


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Return, for each variant, its step in µs, ratio to plain, extra host reads and share clipped."""
    clipped: dict[str, float] = {}
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    clocks = {name: Turns() for name in VARIANTS}
    # One process and one thread, since each thread would have a pool of torch's own.
    steps = TURN * (rounds + 1) + 1
    tasks = {name: greenlet(partial(run, name, clocks[name], steps, clipped)) for name in VARIANTS}
    with redirect_stdout(io.StringIO()):  # what techniques print of themselves
        for task in tasks.values():
            task.switch()
        for turn in track(range(-1, rounds), "rounds", console=Console(stderr=True)):
            for name in random.sample(list(VARIANTS), len(VARIANTS)):
                tasks[name].switch()
                if turn >= 0:  # the first pays for everyone
                    times[name].append(clocks[name].step_us())
        for task in tasks.values():
            task.switch()
    plain_reads = host_reads("plain")
    return {name: _summary(times[name], times["plain"]) for name in VARIANTS} | {
        "host reads": {name: host_reads(name) - plain_reads for name in VARIANTS},
        "clipped": clipped,
    }


def _summary(ours: list[float], plain: list[float]) -> dict[str, float]:
    ratios = sorted(a / b for a, b in zip(ours, plain, strict=True))
    extra = [a - b for a, b in zip(ours, plain, strict=True)]
    # So many ranks from the middle is where a median of independent values stays, by the binomial law.
    middle, away = len(ratios) // 2, math.ceil(0.98 * math.sqrt(len(ratios)))
    return {
        "step_us": statistics.median(ours),
        "extra_us": statistics.median(extra),
        "ratio": statistics.median(ratios),
        "ratio_low": ratios[max(middle - away, 0)],
        "ratio_high": ratios[min(middle + away, len(ratios) - 1)],
    }


def table(result: dict[str, Any]) -> str:
    """Return the figures as a Markdown table."""
    lines = [
        "| | step, ms | extra per step, µs | ratio to plain (95 % interval) | host reads |",
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
