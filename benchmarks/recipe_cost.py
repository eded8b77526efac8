"""What a usual recipe costs as a whole, against the plain Trainer, and how that grows with the network.

First on the demo's model; then on weights of 10,000 to a billion entries in 50 tensors, and on 10 to 3,000
tensors of 1,000 entries, whose gradients are put there, not computed: what is left of a step is the Trainer's
work, SGD's and the recipe's. Plain and recipe run in one process, in turns and in a new random order every
round. The difference and the ratio are taken within a round; their medians over rounds are reported, with the
middle half of the rounds. The slope is that of a line through the logarithms of size and of what is added: 0
where the cost does not depend on the size, 1 where it is proportional to it.

Weights, gradients and the average are three sets in float32, 12 GB of a billion entries. A size that does not
fit is left out, and the table says so. AdamW's two moments would be two sets more, hence SGD.

    python -m benchmarks.recipe_cost --rounds 10
"""

from __future__ import annotations

import argparse
import gc
import io
import math
import random
import statistics
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.progress import track
from torch import nn
from torch.utils.data import DataLoader

import lightning_tricks as lt
from benchmarks.demo_steps import DEMO, Clock, train
from benchmarks.machine import available_memory
from benchmarks.record import record
from benchmarks.shapes import Weights
from benchmarks.steps import quiet
from benchmarks.turns import ratio

STEPS = 12
ENTRIES, TENSORS = tuple(10**power for power in range(4, 10)), (10, 30, 100, 300, 1000, 3000)
BYTES = 3 * 4 * 1.1
"""Memory for each entry: three sets in float32, and a tenth for all else."""


def recipe() -> list[Callback]:
    """Return what many runs use."""
    return [
        lt.LabelSmoothing(),
        lt.GradientClip(),
        lt.WeightDecay(),
        lt.WarmupCosine(),
        lt.EMAWeights(),
    ]


class Network(LightningModule):
    """A small head that learns, and weights whose gradients are put there."""

    def __init__(self, weights: Weights) -> None:
        """Take the weights, which all variants share."""
        super().__init__()
        self.weights, self.head, self.loss = weights, nn.Linear(4, 3), nn.CrossEntropyLoss()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Return the head's loss."""
        return self.loss(self.head(batch), torch.zeros(len(batch), dtype=torch.long))

    def on_after_backward(self) -> None:
        """Put the gradients there."""
        self.weights.fill()

    def optimizer_zero_grad(self, *_: Any) -> None:
        """Leave the gradients that are put there: to take their memory anew would be most of a step."""
        self.head.zero_grad()

    def on_train_epoch_end(self) -> None:
        """Give them back, as before a validation: at the end of a run the average is kept twice."""
        self.weights.zero_grad()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD, so that little of a step is the optimizer's."""
        return torch.optim.SGD(self.parameters(), lr=1e-6, foreach=True)


def step_us(weights: Weights, callbacks: list[Callback]) -> float:
    """Return the median time of a step, in microseconds."""
    clock = Clock()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        callbacks=[clock, *callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with redirect_stdout(io.StringIO()):  # what techniques print of themselves
        trainer.fit(Network(weights), DataLoader(torch.randn(STEPS, 4)))
    return clock.step_us()


def compared(run: Callable[[list[Callback]], float], rounds: int, name: str) -> dict[str, float]:
    """Return the figures of plain and recipe."""
    times: dict[str, list[float]] = {"plain": [], "recipe": []}
    for turn in track(range(-1, rounds), name):  # the first pays for everyone
        for variant in random.sample([*times], 2):
            gc.collect()  # a Trainer and its average are in a circle, and would stay beside the next
            taken = run(recipe() if variant == "recipe" else [])
            if turn >= 0:
                times[variant].append(taken)
    added = [a - b for a, b in zip(times["recipe"], times["plain"], strict=True)]
    low, middle, high = statistics.quantiles(added, n=4)
    return {
        "plain_us": statistics.median(times["plain"]),
        "added_us": middle,
        "added_low": low,
        "added_high": high,
        **ratio(times["recipe"], times["plain"]),
    }


def grown(tensors: int, entries: int, rounds: int) -> dict[str, float]:
    """Return the figures on ``tensors`` weights of ``entries`` in all."""
    weights = Weights([(entries // tensors,)] * tensors)
    return compared(
        lambda callbacks: step_us(weights, callbacks), rounds, f"{tensors} x {entries // tensors}"
    )


def too_large(entries: int, available: int) -> str:
    """Return why a network of ``entries`` does not fit into ``available`` bytes, or nothing.

    Example:
        >>> too_large(10**9, 10**10)
        '13.2 GB are needed, 10.0 GB are available'
        >>> too_large(10**9, 2 * 10**10)
        ''
    """
    needed = BYTES * entries
    if needed <= available:
        return ""
    return f"{needed / 1e9:.1f} GB are needed, {available / 1e9:.1f} GB are available"


def slope(sizes: Sequence[int], added: Sequence[float]) -> float:
    """Return that of a line through the logarithms of both.

    Example:
        >>> round(slope([10, 100, 1000], [3.0, 30.0, 300.0]), 6)
        1.0
    """
    x, y = ([math.log(max(value, 1.0)) for value in each] for each in (sizes, added))
    return statistics.linear_regression(x, y).slope


def table(result: dict[str, Any]) -> str:
    """Return the figures as a Markdown table, and the slopes below it."""
    lines = [
        "| | plain step, ms | added by the recipe, µs (middle half of rounds) | ratio (likewise) |",
        "|---|---:|---:|---:|",
    ]
    for name, row in result["rows"].items():
        added = f"{row['added_us']:.0f} ({row['added_low']:.0f} to {row['added_high']:.0f})"
        share = f"{row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f})"
        lines.append(f"| {name} | {row['plain_us'] / 1000:.2f} | {added} | {share} |")
    told = ", ".join(f"{value:.2f} {name}" for name, value in result["slopes"].items())
    lines += [
        "",
        f"Slopes of what is added: {told}. At the most entries it is {result['ns']:.2f} ns for each.",
    ]
    lines += [f"{name} are left out: {why}." for name, why in result["left_out"].items()]
    return "\n".join(lines)


def by_entries(sizes: Sequence[int], rounds: int) -> tuple[dict[int, dict[str, float]], dict[str, str]]:
    """Return the figures of each of ``sizes`` that fits, and why the others do not."""
    rows, left_out = {}, {}
    for entries in sizes:
        gc.collect()
        if why := too_large(entries, available_memory()):
            print(f"{entries:,} entries are left out: {why}")
            left_out[f"{entries:,} entries"] = why
        else:
            rows[entries] = grown(50, entries, rounds)
    return rows, left_out


def measure(rounds: int, largest: int) -> dict[str, Any]:
    """Return all figures, up to ``largest`` entries."""
    data = DEMO.data(1)
    demo = partial(train, data, weight_decay=0.0)  # which is the recipe's
    first = compared(demo, rounds, "demo")
    large, left_out = by_entries([entries for entries in ENTRIES if entries <= largest], rounds)
    many = {tensors: grown(tensors, 1000 * tensors, rounds) for tensors in TENSORS}
    rows = {
        "the demo's model": first,
        **{f"{entries:,} entries in 50 tensors": row for entries, row in large.items()},
        **{f"{tensors:,} tensors of 1,000": row for tensors, row in many.items()},
    }
    slopes = {}
    for what, last, found in (("entries", "tenfold", large), ("tensors", "threefold", many)):
        sizes, added = [*found], [row["added_us"] for row in found.values()]
        slopes[f"over all {what}"] = slope(sizes, added)
        slopes[f"over the last {last} of {what}"] = slope(sizes[-2:], added[-2:])
    most = max(large)
    nanoseconds = 1000 * large[most]["added_us"] / most
    return {"rounds": rounds, "rows": rows, "slopes": slopes, "ns": nanoseconds, "left_out": left_out}


def main() -> None:
    """Measure, write the figures as JSON, and put the table into its document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="turns of every variant (default: 10)")
    parser.add_argument("--largest", type=int, default=10**9, help="entries at most (default: 10 ** 9)")
    chosen = parser.parse_args()
    torch.set_num_threads(2)
    with quiet():
        result = measure(chosen.rounds, chosen.largest)
    record("recipe_cost", result, table(result))


if __name__ == "__main__":
    main()
