"""What measuring the health of layers costs, as a share of the optimizer's step alone.

GradientHealth measures at one step of 50, its default: each round times a step of AdamW, and one that is
measured before and after, on the shapes of two well-known networks. A whole step, with its forward and
backward pass, is longer, so that the share of it is smaller than these.

    python -m benchmarks.health --rounds 20
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.progress import track

from benchmarks.record import record, rounds_asked
from benchmarks.shapes import SETS, Weights
from lightning_tricks import GradientHealth
from lightning_tricks.reporting.layer_watch import LayerWatch


def seconds(run: Callable[[], object]) -> float:
    """Return how long ``run`` takes."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def measure(set_name: str, rounds: int) -> dict[str, Any]:
    """Return the figures of one set of weights."""
    weights = Weights(SETS[set_name]())
    weights.fill()
    watch = LayerWatch(dict(weights.named_parameters()), weights, {})
    optimizer = torch.optim.AdamW(weights.parameters(), lr=1e-4)

    def measured() -> None:
        watch.before_step(optimizer)
        optimizer.step()
        watch.after_step(optimizer)
        watch.end_batch()

    measured()  # the first one makes the optimizer's state
    plain, looked = [], []
    for _ in track(range(rounds), set_name):
        plain.append(seconds(optimizer.step))
        looked.append(seconds(measured))
    every = GradientHealth().every
    shares = [
        100 * (with_look - without) / every / without
        for without, with_look in zip(plain, looked, strict=True)
    ]
    low, middle, high = statistics.quantiles(shares, n=4)
    return {
        "weights": set_name,
        "step_ms": 1000 * statistics.median(plain),
        "look_ms": 1000 * statistics.median(b - a for a, b in zip(plain, looked, strict=True)),
        "percent": middle,
        "percent_low": low,
        "percent_high": high,
    }


def main() -> None:
    """Measure, write the figures as JSON, and put the table into its document."""
    rounds = rounds_asked(__doc__)
    torch.set_num_threads(2)
    rows = [measure(set_name, rounds) for set_name in SETS]
    lines = ["| weights | AdamW's step, ms | a look, ms | of the steps between, % (middle half of rounds) |"]
    lines.append("|---|---:|---:|---:|")
    for row in rows:
        spread = f"{row['percent']:.2f} ({row['percent_low']:.2f} to {row['percent_high']:.2f})"
        lines.append(f"| {row['weights']} | {row['step_ms']:.0f} | {row['look_ms']:.0f} | {spread} |")
    record("health", {"rounds": rounds, "rows": rows}, "\n".join(lines))


if __name__ == "__main__":
    main()
