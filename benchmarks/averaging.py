"""What one update of an exponential moving average costs, ours and its peers', against the least there is.

The least is one ``lerp_`` over two flat tensors of as many entries: 12 bytes per entry go through memory, and
no arithmetic is left to save. All variants average the same weights, of the shapes of a well-known network,
in one process, in turns and in a new random order every round. Ours is timed as a Trainer calls it at the end
of a batch that does not log; of the others, the call that their users make. The ratio to the flat ``lerp_``
is taken within a round; its median over rounds is reported with the middle half of the rounds. So is what it
costs to put the average into the module for an evaluation and to take it out again, and a step in which the
average does not move. The last row is what ours takes for 320 weights of one entry beside torch's kernel.

    python -m benchmarks.averaging --rounds 30
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from typing import Any

import torch
from lightning.pytorch import Trainer
from rich.progress import track

import lightning_tricks as lt
from benchmarks.averaging_peers import DECAY, PEERS, PEERS_IN_AND_OUT, Network, Update
from benchmarks.record import record, rounds_asked
from benchmarks.shapes import SETS, Weights
from benchmarks.steps import quiet

FLAT, OURS, THREE, NARROW = "flat lerp_", "EMAWeights", "three EMAWeights", "EMAWeights of bf16 in fp32"
IDLE = "EMAWeights(every=10), another step"
SWAP, COPY = "EMAWeights, in and out", "EMAWeights, in and out by values"
# By values, in and out are twice the six passes over 8 bytes per entry that they are made of.
GOALS = {OURS: 1.1, THREE: 2.8, NARROW: 2.0, SWAP: 0.1, COPY: 2 * 6 * 8 / 12, IDLE: 0.01}


def flat_lerp(weights: Weights) -> Update:
    """Return the least that an update can cost."""
    total = sum(weight.numel() for weight in weights.weights)
    live, average = torch.randn(total), torch.randn(total)
    return lambda: average.lerp_(live, 1 - DECAY)


def begun(weights: Weights, count: int = 1, every: int = 1) -> tuple[list[lt.EMAWeights], Update]:
    """Return ``count`` of ours in a run that has begun, and what they do at the end of a batch."""
    settings: dict[str, Any] = {"decay": DECAY, "every": every, "evaluate": False, "params": "net"}
    averages = [lt.EMAWeights(label=str(index), **settings) for index in range(count)]
    trainer = Trainer(
        accelerator="cpu",
        max_steps=1,
        callbacks=[*averages],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(network := Network(weights))
    conductor = averages[0].conductor
    conductor.logs, conductor.clock.applied, conductor.clock.attempted = False, True, True

    def update() -> None:
        conductor.clock.position += 1
        for average in averages:
            average.on_train_batch_end(trainer, network)

    return averages, update


def ours(weights: Weights) -> Update:
    """Return what one of ours does."""
    return begun(weights)[1]


def copy_of(weights: Weights) -> Weights:
    """Return others of the same shapes."""
    return Weights([tuple(weight.shape) for weight in weights.weights])


def in_and_out(weights: Weights) -> Update:
    """Return what ours does before and after an evaluation."""
    shadows = begun(weights)[0][0]._second.shadows
    assert shadows is not None
    return lambda: (shadows.show(), shadows.hide())


def in_and_out_by_values(weights: Weights) -> Update:
    """Return the same for weights of which somebody holds views, so that they must stay where they are."""
    own = copy_of(weights)
    views, update = [weight.detach() for weight in own.weights], in_and_out(own)
    return lambda: (views, update())


VARIANTS: dict[str, Callable[[Weights], Update]] = {
    FLAT: flat_lerp,
    OURS: ours,
    **PEERS,
    NARROW: lambda weights: ours(copy_of(weights).bfloat16()),
    THREE: lambda weights: begun(weights, 3)[1],
    IDLE: lambda weights: begun(weights, every=2**62)[1],
    SWAP: in_and_out,
    COPY: in_and_out_by_values,
    **PEERS_IN_AND_OUT,
}


def built(weights: Weights) -> dict[str, Update]:
    """Return the update of each variant whose package is installed."""
    updates: dict[str, Update] = {}
    for name, build in VARIANTS.items():
        try:
            updates[name] = build(weights)
        except PackageNotFoundError as missing:
            print(f"{name} is left out: pip install --no-deps {missing.name}")
    return updates


def taken(update: Update) -> float:
    """Return how long ``update`` takes, in microseconds."""
    begin = time.perf_counter_ns()
    update()
    return (time.perf_counter_ns() - begin) / 1000


def measure(set_name: str, rounds: int) -> list[dict[str, Any]]:
    """Return a row of figures for each variant, on one set of weights."""
    updates = built(Weights(SETS[set_name]()))
    for update in updates.values():  # the first copies, or touches memory that was never touched
        update()
        update()
    times: dict[str, list[float]] = {name: [] for name in updates}
    for _ in track(range(rounds), set_name):
        for name in random.sample(list(updates), len(updates)):
            times[name].append(taken(updates[name]))
    return [_row(set_name, name, times[name], times[FLAT]) for name in updates]


def _row(set_name: str, name: str, own: list[float], flat: list[float]) -> dict[str, Any]:
    low, middle, high = statistics.quantiles([a / b for a, b in zip(own, flat, strict=True)], n=4)
    figures = {"update_us": statistics.median(own), "ratio": middle, "ratio_low": low, "ratio_high": high}
    return {"weights": set_name, "variant": name, **figures, "goal": GOALS.get(name)}


def overhead(rounds: int) -> dict[str, Any]:
    """Return the row of what ours adds to torch's kernel where there is next to nothing to compute."""
    weights = Weights(320 * [(1,)])
    update, own = ours(weights), [torch.zeros(1) for _ in weights.weights]
    live = [weight.detach() for weight in weights.weights]
    added = [
        taken(update) - taken(lambda: torch._foreach_lerp_(own, live, 1 - DECAY))
        for _ in track(range(20 * rounds), "320 weights of one entry")
    ]
    name = f"{OURS} beside _foreach_lerp_"
    return {"weights": "320 of one entry", "variant": name, "update_us": statistics.median(added)}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the figures as a Markdown table."""
    lines = [
        "| weights | one update of | µs | ratio to the flat lerp_ (middle half of rounds) | aim |",
        "|---|---|---:|---:|---:|",
    ]
    for row in rows:
        if "ratio" not in row:
            lines.append(f"| {row['weights']} | {row['variant']} | {row['update_us']:.0f} |  | 100 µs |")
            continue
        spread = f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
        goal = "" if row["goal"] is None else f"{row['goal']:g}"
        lines.append(f"| {row['weights']} | {row['variant']} | {row['update_us']:.0f} | {spread} | {goal} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, write the figures as JSON, and put the table into its document."""
    rounds = rounds_asked(__doc__)
    torch.set_num_threads(2)
    with quiet():
        rows = [*(row for set_name in SETS for row in measure(set_name, rounds)), overhead(rounds)]
    record("averaging", {"rounds": rounds, "rows": rows}, table(rows))


if __name__ == "__main__":
    main()
