"""What a usual recipe costs as a whole, against the plain Trainer, and how that grows with the network.

First on the demo's model; then on weights of 10,000 to 100 million entries in 50 tensors, and on 10 to 3,000
tensors of 1,000 entries, whose gradients are put there, not computed: what is left of a step is the Trainer's
work, SGD's and the recipe's. Plain and recipe run in one process, in turns and in a new random order every
round. The difference and the ratio are taken within a round; their medians over rounds are reported, with the
middle half of the rounds. The slope is that of a line through the logarithms of size and of what is added: 0
where the cost does not depend on the size, 1 where it is proportional to it.

    python -m benchmarks.recipe_cost --rounds 30
"""

from __future__ import annotations

import argparse
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
from benchmarks.overhead import DEMO, Clock, train
from benchmarks.record import record
from benchmarks.shapes import Weights
from benchmarks.steps import quiet
from benchmarks.turns import ratio

STEPS = 12
ENTRIES, TENSORS = (10**4, 10**5, 10**6, 10**7, 10**8), (10, 30, 100, 300, 1000, 3000)


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
    slopes = result["slopes"]
    told = ", ".join(f"{slopes[name]:.2f} {name}" for name in slopes)
    return "\n".join([*lines, "", f"Slopes of what is added: {told}."])


def measure(rounds: int, largest: int) -> dict[str, Any]:
    """Return all figures, up to ``largest`` entries."""
    data = DEMO.data(1)
    demo = partial(train, data, weight_decay=0.0)  # which is the recipe's
    rows = {"the demo's model": compared(demo, rounds, "demo")}
    sizes = [entries for entries in ENTRIES if entries <= largest]
    rows |= {f"{entries:,} entries in 50 tensors": grown(50, entries, rounds) for entries in sizes}
    rows |= {f"{tensors:,} tensors of 1,000": grown(tensors, 1000 * tensors, rounds) for tensors in TENSORS}
    added = [row["added_us"] for row in rows.values()][1:]
    by_entries, by_tensors = added[: len(sizes)], added[len(sizes) :]
    slopes = {
        "over all entries": slope(sizes, by_entries),
        "over the last tenfold of entries": slope(sizes[-2:], by_entries[-2:]),
        "over tensors": slope(TENSORS, by_tensors),
        "over the last threefold of tensors": slope(TENSORS[-2:], by_tensors[-2:]),
    }
    return {"rounds": rounds, "rows": rows, "slopes": slopes}


def main() -> None:
    """Measure, write the figures as JSON, and put the table into its document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="turns of every variant (default: 30)")
    parser.add_argument("--largest", type=int, default=10**8, help="entries at most (default: 10 ** 8)")
    chosen = parser.parse_args()
    torch.set_num_threads(2)
    with quiet():
        result = measure(chosen.rounds, chosen.largest)
    record("recipe_cost", result, table(result))


if __name__ == "__main__":
    main()
