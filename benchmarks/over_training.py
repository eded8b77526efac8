"""What averages of the weights are worth over a training: validated beside the live weights, as they go.

A residual network on digits, of whose training labels a fifth are drawn anew, and a character model on
Python's help, both at a constant rate. All averages are kept in one run, apart from the training, and each is
validated in the same validations as the live weights; so they differ in nothing else. Snapshots are taken
where the weights are validated. Running statistics of BatchNorm are averaged exponentially with the weights,
and estimated anew for the means. Curves are means over seeds, bands go from the least to the greatest.

    python -m benchmarks.over_training --seeds 3
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from matplotlib.figure import Figure
from rich.progress import track

import lightning_tricks as lt
from benchmarks.record import ROOT, record
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.recipes.character_net import CharacterNet
from lightning_tricks.recipes.characters import ALPHABET, CharacterData, CharacterModel
from lightning_tricks.recipes.digits import DigitsClassifier, DigitsData
from lightning_tricks.recipes.residual import ResidualNet

LIVE = "live weights"
COLOURS = ("#999999", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")  # Okabe and Ito's
Curves = dict[str, list[list[float]]]
"""Of each set of weights, the values of each seed."""


def averages(every: int) -> dict[str, Technique]:
    """Return the averages that are compared, by the names of their curves."""
    apart: dict[str, Any] = {"evaluate": False, "validate": True}
    return {
        "EMAWeights(decay=0.9)": lt.EMAWeights(decay=0.9, label="short", buffers="average", **apart),
        "EMAWeights()": lt.EMAWeights(label="default", buffers="average", **apart),
        'SWAWeights(start="50%")': lt.SWAWeights(start="50%", every=every, **apart),
        "LAWA(k=10)": lt.LAWA(k=10, every=every, store="memory", **apart),
    }


def digits(seed: int) -> tuple[LightningModule, LightningDataModule]:
    """Return the network and the data, 20 steps per epoch."""
    data = DigitsData(training=800, batch_size=40, label_noise=0.2, seed=seed)
    return DigitsClassifier(ResidualNet(widths=(8, 16, 32), blocks=1), lr=0.05), data


def characters(seed: int) -> tuple[LightningModule, LightningDataModule]:
    """Return the model and the data."""
    network = CharacterNet(len(ALPHABET), width=48, blocks=2)
    return CharacterModel(network, lr=1e-2), CharacterData(seed=seed)


TASKS: dict[str, tuple[Callable[[int], tuple[LightningModule, LightningDataModule]], int, int]] = {
    "digits": (digits, 600, 20),
    "characters": (characters, 1200, 50),
}
"""Of each task, its parts, its steps, and the steps between two validations."""


class Losses(Callback):
    """Notes what each validation logs of each set of weights."""

    def __init__(self, names: dict[str, str]) -> None:
        """Take the metric of each curve."""
        self.names = names
        self.steps: list[int] = []
        self.curves: dict[str, list[float]] = {name: [] for name in names}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the metrics, which the averages before it in the list have logged."""
        self.steps.append(trainer.global_step)
        for name, metric in self.names.items():
            found = trainer.callback_metrics.get(metric)  # none before it begins
            self.curves[name].append(math.nan if found is None else float(found))


def train(task: str, seed: int) -> tuple[list[int], dict[str, list[float]]]:
    """Return the steps of the validations and the losses of one run."""
    build, steps, every = TASKS[task]
    seed_everything(seed, verbose=False)
    module, data = build(seed)
    compared = averages(every)
    prefixed = {name: f"{each.metric_prefix}/val_loss" for name, each in compared.items()}
    losses = Losses({LIVE: "val_loss", **prefixed})
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        val_check_interval=every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        callbacks=[*compared.values(), losses],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    return losses.steps, losses.curves


def draw(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw each task's curves into a PNG at ``path``."""
    figure = Figure(figsize=(11.0, 4.4), dpi=110, layout="constrained")
    for axes, (task, result) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
        steps, curves = result["steps"], result["val_loss"]
        for colour, (name, values) in zip(COLOURS, curves.items(), strict=False):
            columns = [*zip(*values, strict=True)]
            means = [statistics.mean(column) for column in columns]
            axes.plot(steps, means, color=colour, label=name, linewidth=1.6)
            axes.fill_between(steps, *zip(*map(ends, columns), strict=True), color=colour, alpha=0.15, lw=0)
        later = [
            value for values in curves.values() for run in values for value in run[len(steps) * 2 // 5 :]
        ]
        final = [value for value in later if not math.isnan(value)]
        axes.set_ylim(0.95 * min(final), min(1.02 * max(final), 3 * min(final)))
        axes.set_title(task)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("validation loss, nats")
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, format="png")


def ends(values: tuple[float, ...]) -> tuple[float, float]:
    """Return the least and the greatest."""
    return min(values), max(values)


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return the last loss and the best one of each set, as means over seeds, and the spread."""
    lines = [
        "| task | weights | last loss (least to greatest) | best loss | its step |",
        "|---|---|---:|---:|---:|",
    ]
    for task, result in found.items():
        for name, values in result["val_loss"].items():
            last = [run[-1] for run in values]
            means = [statistics.mean(column) for column in zip(*values, strict=True)]
            best = min(range(len(means)), key=lambda index: (math.isnan(means[index]), means[index]))
            spread = f"{statistics.mean(last):.3f} ({min(last):.3f} to {max(last):.3f})"
            lines.append(f"| {task} | {name} | {spread} | {means[best]:.3f} | {result['steps'][best]} |")
    return "\n".join(lines)


def main() -> None:
    """Train, and write figures, picture and table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="runs of each task (default: 3)")
    seeds = range(parser.parse_args().seeds)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    found: dict[str, dict[str, Any]] = {}
    for task, seed in track([(task, seed) for task in TASKS for seed in seeds], description="runs"):
        steps, curves = train(task, seed)
        result = found.setdefault(task, {"steps": steps, "val_loss": {name: [] for name in curves}})
        for name, values in curves.items():
            result["val_loss"][name].append(values)
    draw(found, ROOT / "docs" / "averages.png")
    record("over_training", {"seeds": len(seeds), "tasks": found}, table(found))


if __name__ == "__main__":
    main()
