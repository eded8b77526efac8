"""What small images early in training save and cost: handwritten digits, enlarged to 32x32 or as they are.

A residual network, 1,000 digits, a rate that falls; the accuracies on 797 others, in percent, and the
processor's seconds for the training steps, seed by seed. Ways to train take turns within a seed. Full size
for 11 epochs takes as long as small images first for 20, and that for 36 as long as full size for 20.

    python -m benchmarks.resizing --seeds 5
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch.nn.functional import interpolate
from torch.utils.data import TensorDataset

from lightning_tricks import ProgressiveResizing, WarmupCosine
from lightning_tricks.recipes.digits import QUIET, DigitsClassifier, DigitsData
from lightning_tricks.recipes.residual import ResidualNet

WAYS: dict[str, tuple[int, Callable[[], list[Callback]]]] = {
    "full size, 20 epochs": (20, list),
    "full size, 11 epochs": (11, list),
    "ProgressiveResizing(), 20 epochs": (20, lambda: [ProgressiveResizing()]),
    "ProgressiveResizing(), 36 epochs": (36, lambda: [ProgressiveResizing()]),
    "ProgressiveResizing(scale=0.5), 20 epochs": (20, lambda: [ProgressiveResizing(scale=0.5)]),
}


class Enlarged(DigitsData):
    """Digits of another size, by bilinear interpolation.

    Args:
        side: Their height and width, in pixels.
        seed: Of the split and the order of training.
    """

    def __init__(self, side: int, *, seed: int) -> None:
        """Take the settings."""
        super().__init__(seed=seed)
        self.side = side

    def setup(self, stage: str) -> None:
        super().setup(stage)
        for name in ("train_set", "val_set"):
            images, labels = getattr(self, name).tensors
            large = interpolate(images, size=(self.side, self.side), mode="bilinear")
            setattr(self, name, TensorDataset(large, labels))


class StepTimes(Callback):
    """Adds up the processor's seconds from the start of each training batch to its end."""

    def __init__(self) -> None:
        """Begin at 0."""
        self.seconds = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self.seconds -= time.process_time()

    def on_train_batch_end(self, *_: Any) -> None:
        self.seconds += time.process_time()


def run(side: int, seed: int, epochs: int, techniques: list[Callback]) -> tuple[float, float]:
    """Return the accuracy, in percent, and the seconds of a training with ``techniques``."""
    torch.manual_seed(seed)
    times = StepTimes()
    trainer = Trainer(max_epochs=epochs, callbacks=[WarmupCosine(), *techniques, times], **QUIET)
    trainer.fit(DigitsClassifier(ResidualNet(widths=(8, 16, 32))), Enlarged(side, seed=seed))
    return 100 * trainer.callback_metrics["val_accuracy"].item(), times.seconds


def main() -> None:
    """Print a line for each way to train and each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how many (default: 5)")
    seeds = range(parser.parse_args().seeds)
    for side in (32, 8):
        found = defaultdict(list)
        for seed in seeds:
            for name, (epochs, build) in WAYS.items():
                found[name].append(run(side, seed, epochs, build()))
        for name, runs in found.items():
            accuracies, seconds = zip(*runs, strict=True)
            each = " ".join(f"{value:.1f}" for value in accuracies)
            took = " ".join(f"{value:.1f}" for value in seconds)
            mean = statistics.mean(accuracies)
            print(f"{side}x{side}, {name}: {mean:.1f} % ({each}), {statistics.mean(seconds):.1f} s ({took})")


if __name__ == "__main__":
    main()
