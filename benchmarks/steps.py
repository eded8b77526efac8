"""What the parts of a step cost beside their peers: clipping of several kinds, and a step of the rate.

Each variant runs in a Trainer of its own, all in one process, in turns and in a new random order every round.
A step is timed from the last gradient to the optimizer: all that callbacks and Lightning do to gradients in
between. The network is a list of weights of the shapes of a well-known one, with gradients drawn once. The
ratio is taken within a round; its median over rounds is reported with the middle half of the rounds.

    python -m benchmarks.steps --rounds 30
"""

from __future__ import annotations

import importlib.util
import logging
import math
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.progress import track
from torch.utils.data import DataLoader

import lightning_tricks as lt
from benchmarks.record import record, rounds_asked
from benchmarks.shapes import SETS, Weights

STEPS, SKIPPED = 5, 2


class Timed(torch.optim.SGD):
    """Changes no weight; notes when a step could begin."""

    ready = 0

    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Let the gradients be made, and look at the clock."""
        assert closure is not None
        closure()
        self.ready = time.perf_counter_ns()


class Network(LightningModule):
    """Weights whose gradients are put there, not computed."""

    def __init__(self, weights: Weights) -> None:
        """Take the weights, which all variants share."""
        super().__init__()
        self.net, self.own = weights, torch.nn.Parameter(torch.zeros(1))
        self.times: list[int] = []
        self.began = 0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Return a loss that costs nothing."""
        return self.own.sum()

    def on_after_backward(self) -> None:
        """Put the gradients there, and look at the clock."""
        self.net.fill()
        self.began = time.perf_counter_ns()

    def on_train_batch_end(self, *_: Any) -> None:
        """Note the time between both looks at the clock."""
        self.times.append(self.trainer.optimizers[0].ready - self.began)

    def configure_optimizers(self) -> Timed:
        """Return an optimizer that only looks at the clock."""
        return Timed(self.net.parameters(), lr=0.1)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return batches without content."""
        return DataLoader(range(STEPS))


class TimmClip(Callback):
    """timm's adaptive clipping in the hook where ours acts."""

    def __init__(self) -> None:
        """Load the function alone: the package itself needs torchvision."""
        path = distribution("timm").locate_file("timm/utils/agc.py")
        spec = importlib.util.spec_from_file_location("timm_agc", str(path))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.clip = module.adaptive_clip_grad

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.clip(pl_module.net.parameters(), clip_factor=0.01)


def nothing() -> tuple[list[Callback], dict[str, Any]]:
    """Return what a Trainer without clipping is given."""
    return [], {}


VARIANTS: dict[str, Callable[[], tuple[list[Callback], dict[str, Any]]]] = {
    "no clipping": nothing,
    "Trainer(gradient_clip_val=1.0)": lambda: ([], {"gradient_clip_val": 1.0}),
    "GradientClip(max_norm=1.0)": lambda: ([lt.GradientClip(max_norm=1.0)], {}),
    "GradientClip(max_norm=Percentile())": lambda: ([lt.GradientClip(max_norm=lt.Percentile())], {}),
    "GradientClip(max_norm=ZScore())": lambda: (
        [lt.GradientClip(max_norm=lt.ZScore(warmup_steps=2))],
        {},
    ),
    "AdaptiveGradientClip()": lambda: ([lt.AdaptiveGradientClip()], {}),
}
# What is compared with what, and the ratio that is aimed at.
GOALS = [
    ("GradientClip(max_norm=1.0)", "Trainer(gradient_clip_val=1.0)", 1.02),
    ("GradientClip(max_norm=Percentile())", "GradientClip(max_norm=1.0)", 1.05),
    ("GradientClip(max_norm=ZScore())", "GradientClip(max_norm=1.0)", 1.05),
    ("AdaptiveGradientClip()", "timm's AGC", 0.5),
]


def gradient_work(weights: Weights, variant: str) -> float:
    """Return the median time that a step's work on gradients takes, in microseconds."""
    callbacks, settings = VARIANTS[variant]()
    network = Network(weights)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(network)
    return statistics.median(network.times[SKIPPED:]) / 1000


def rate_steps() -> Iterator[tuple[str, float]]:
    """Yield the time of a step of the rate over ten groups, ours and LambdaLR's, in microseconds."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.1 * 0.8**index} for index in range(10)]
    steps = 1000

    class TenGroups(Network):
        def configure_optimizers(self) -> Timed:
            return Timed(groups, lr=0.1)

    class Steps(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            clock = ours.clock
            before, clock.attempted = clock.position, True
            begin = time.perf_counter_ns()
            for _ in range(steps):
                clock.position += 1
                ours.on_train_batch_end(trainer)
            self.us = (time.perf_counter_ns() - begin) / steps / 1000
            clock.position, clock.attempted = before, False

    ours, watch = lt.LearningRate(schedule=f"warmup({steps // 10}) >> cosine(to=0.1)"), Steps()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        accelerator="cpu", max_steps=1, callbacks=[ours, watch], enable_model_summary=False, **quiet
    )
    trainer.fit(TenGroups(Weights([(1,)])))
    yield "LearningRate", watch.us

    def factor(step: int) -> float:
        if step < steps // 10:
            return (step + 1) / (steps // 10 + 1)
        return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - steps // 10) / (steps - steps // 10)))

    optimizer = torch.optim.SGD(groups, lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    optimizer.step()  # or torch warns
    begin = time.perf_counter_ns()
    for _ in range(steps):
        scheduler.step()
    yield "LambdaLR", (time.perf_counter_ns() - begin) / steps / 1000


def _summary(ours: list[float], theirs: list[float], goal: float) -> dict[str, float]:
    low, middle, high = statistics.quantiles([a / b for a, b in zip(ours, theirs, strict=True)], n=4)
    return {
        "ours_us": statistics.median(ours),
        "theirs_us": statistics.median(theirs),
        "ratio": middle,
        "ratio_low": low,
        "ratio_high": high,
        "goal": goal,
    }


def beside_peers(rounds: int) -> Iterator[dict[str, Any]]:
    """Yield a row of figures for each comparison of work on gradients."""
    for set_name, shapes in SETS.items():
        weights = Weights(shapes())
        times: dict[str, list[float]] = {name: [] for name in VARIANTS}
        for name in VARIANTS:  # the first pays for everyone
            gradient_work(weights, name)
        for _ in track(range(rounds), set_name):
            for name in random.sample(list(VARIANTS), len(VARIANTS)):
                times[name].append(gradient_work(weights, name))
        for ours, theirs, goal in GOALS:
            if theirs in times:
                names = {"weights": set_name, "ours": ours, "theirs": theirs}
                yield {**names, **_summary(times[ours], times[theirs], goal)}


def beside_lambda(rounds: int) -> dict[str, Any]:
    """Return the row of figures for a step of the rate."""
    taken: dict[str, list[float]] = {"LearningRate": [], "LambdaLR": []}
    for _ in track(range(rounds), "rates"):
        for name, time_us in rate_steps():
            taken[name].append(time_us)
    names = {"weights": "10 groups", "ours": "LearningRate", "theirs": "LambdaLR"}
    return {**names, **_summary(taken["LearningRate"], taken["LambdaLR"], 1.5)}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the figures as a Markdown table."""
    lines = [
        "| weights | ours | beside | ours, µs | the other, µs | ratio (middle half of rounds) | aim |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        spread = f"{row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f})"
        numbers = f"{row['ours_us']:.0f} | {row['theirs_us']:.0f} | {spread} | {row['goal']:g}"
        lines.append(f"| {row['weights']} | `{row['ours']}` | `{row['theirs']}` | {numbers} |")
    return "\n".join(lines)


@contextmanager
def quiet() -> Iterator[None]:
    """Let Lightning say nothing."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        yield


def main() -> None:
    """Measure, write the figures as JSON, and put the table into its document."""
    rounds = rounds_asked(__doc__)
    torch.set_num_threads(2)
    try:
        distribution("timm")
        VARIANTS["timm's AGC"] = lambda: ([TimmClip()], {})
    except PackageNotFoundError:
        print("timm is left out: pip install --no-deps timm")
    with quiet():
        rows = [*beside_peers(rounds), beside_lambda(rounds)]
    record("steps", {"rounds": rounds, "rows": rows}, table(rows))


if __name__ == "__main__":
    main()
