"""What one update of an exponential moving average costs, ours and its peers', against the least there is.

That is one ``lerp_`` over two flat tensors of as many entries: 12 bytes per entry go through memory, and no
arithmetic is left to save. All variants average the same weights, of the shapes of a well-known network, in
one process, in turns and in a new random order every round. Ours is timed as a Trainer calls it at the end of
a batch that does not log; of the others, the call that their users make. The ratio to the flat ``lerp_`` is
taken within a round; its median over rounds is reported with the middle half of the rounds.

    python -m benchmarks.averaging --rounds 30
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from rich.progress import track
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

import lightning_tricks as lt
from benchmarks.machine import machine
from benchmarks.readme import replace_table
from benchmarks.shapes import SETS, Weights
from benchmarks.steps import quiet

DECAY = 0.999
HERE = Path(__file__).parent
Update = Callable[[], object]
FLAT, OURS, THREE, NARROW = "flat lerp_", "EMAWeights", "three EMAWeights", "EMAWeights of bf16 in fp32"
GOALS = {OURS: 1.1, THREE: 2.8, NARROW: 2.0}


class Network(LightningModule):
    """Weights that nothing changes, and one that an optimizer may step."""

    def __init__(self, weights: Weights) -> None:
        """Take the weights, which all variants share."""
        super().__init__()
        self.net, self.own = weights, torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Return a loss that costs nothing."""
        return self.own.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return an optimizer of the one weight."""
        return torch.optim.SGD([self.own], lr=0.1)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return one batch without content."""
        return DataLoader(range(1))


def flat_lerp(weights: Weights) -> Update:
    """Return the least that an update can cost."""
    total = sum(weight.numel() for weight in weights.weights)
    live, average = torch.randn(total), torch.randn(total)
    return lambda: average.lerp_(live, 1 - DECAY)


def ours(weights: Weights, count: int = 1) -> Update:
    """Return what ``count`` of ours do at the end of a batch, in a run that has begun."""
    averages = [lt.EMAWeights(decay=DECAY, label=str(i), evaluate=False, params="net") for i in range(count)]
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

    return update


def narrow(weights: Weights) -> Update:
    """Return that of ours for weights of 16 bits, whose average has 32."""
    copy = Weights([tuple(weight.shape) for weight in weights.weights])
    return ours(copy.bfloat16())


def lightnings(weights: Weights) -> Update:
    """Return that of Lightning's callback."""
    callback, network = EMAWeightAveraging(decay=DECAY), Network(weights)
    callback.setup(Trainer(accelerator="cpu", logger=False), network, "fit")
    average = callback._average_model
    assert average is not None
    return lambda: average.update_parameters(network)


def torchs(weights: Weights) -> Update:
    """Return that of torch's model with its function for many tensors."""
    average = AveragedModel(weights, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    return lambda: average.update_parameters(weights)


def timms(weights: Weights) -> Update:
    """Return that of timm, whose file is loaded alone: the package itself needs torchvision."""
    path = distribution("timm").locate_file("timm/utils/model_ema.py")
    spec = importlib.util.spec_from_file_location("timm_model_ema", str(path))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    average = module.ModelEmaV3(weights, decay=DECAY)
    return lambda: average.update(weights)


def ema_pytorchs(weights: Weights) -> Update:
    """Return that of ema-pytorch, by its foreach kernels."""
    distribution("ema-pytorch")
    from ema_pytorch import EMA

    settings = {"update_every": 1, "update_after_step": 0, "include_online_model": False}
    average = EMA(weights, beta=DECAY, use_foreach=True, **settings)
    return lambda: average.update()


VARIANTS: dict[str, Callable[[Weights], Update]] = {
    FLAT: flat_lerp,
    OURS: ours,
    "torch AveragedModel, multi_avg_fn": torchs,
    "timm ModelEmaV3": timms,
    "ema-pytorch EMA, foreach": ema_pytorchs,
    "Lightning EMAWeightAveraging": lightnings,
    NARROW: narrow,
    THREE: lambda weights: ours(weights, 3),
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


def table(rows: list[dict[str, Any]]) -> str:
    """Return the figures as a Markdown table."""
    lines = [
        "| weights | one update of | µs | ratio to the flat lerp_ (middle half of rounds) | aim |",
        "|---|---|---:|---:|---:|",
    ]
    for row in rows:
        spread = f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
        goal = "" if row["goal"] is None else f"{row['goal']:g}"
        lines.append(f"| {row['weights']} | {row['variant']} | {row['update_us']:.0f} | {spread} | {goal} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, write the figures as JSON, and put the table into the README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="turns of every variant (default: 30)")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(2)
    with quiet():
        rows = [row for set_name in SETS for row in measure(set_name, rounds)]
    path = HERE / "results" / "averaging.json"
    path.write_text(json.dumps({"machine": machine(), "rounds": rounds, "rows": rows}, indent=1) + "\n")
    replace_table(HERE.parent / "README.md", "averaging", table(rows))
    print(table(rows), f"\nwritten to {path} and the README")


if __name__ == "__main__":
    main()
