"""What class weights and a balanced sampler are worth on digits of which five classes are rare.

Two layers, 30 epochs, of 1,000 digits to train on those below 5 and one in 25 of the others. Mean recalls of
all classes and of the rare ones on 797 digits, where no class is rare, in percent.

    python -m benchmarks.unbalanced --seeds 5
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_tricks import balanced_sampler, class_weights
from lightning_tricks.recipes.digits import QUIET, DigitsClassifier, DigitsData


def rare_digits(seed: int) -> tuple[Tensor, Tensor, DigitsData]:
    """Return images and labels to train on, and the data with those to validate on."""
    data = DigitsData(seed=seed)
    data.setup("fit")
    images, labels = data.train_set.tensors
    kept = (labels < 5) | (torch.arange(len(labels)) % 25 == 0)
    for rare in range(5, 10):
        kept[(labels == rare).nonzero()[0]] = True
    return images[kept], labels[kept], data


def recalls(seed: int, remedy: str) -> Tensor:
    """Return the recall of each class after a training with ``remedy``."""
    images, labels, data = rare_digits(seed)
    torch.manual_seed(seed)
    model = DigitsClassifier(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)), lr=0.01
    )
    how: dict[str, Any] = {"shuffle": True}
    if remedy == "class_weights":
        model.criterion = nn.CrossEntropyLoss(weight=class_weights(labels))
    if remedy == "balanced_sampler":
        how = {"sampler": balanced_sampler(labels, seed=seed)}
    pairs = list(zip(images, labels, strict=True))
    Trainer(max_epochs=30, **QUIET).fit(model, DataLoader(pairs, 64, drop_last=True, **how))
    images, labels = data.val_set.tensors
    hits = model(images).argmax(1) == labels
    return torch.stack([hits[labels == label].float().mean() for label in range(10)]) * 100


def main() -> None:
    """Print a line for each remedy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how many (default: 5)")
    seeds = range(parser.parse_args().seeds)
    for remedy in ("neither", "class_weights", "balanced_sampler"):
        found = [recalls(seed, remedy) for seed in seeds]
        every, rare = ([values[first:].mean().item() for values in found] for first in (0, 5))
        each = " ".join(f"{value:.1f}" for value in rare)
        print(f"{remedy}: {statistics.mean(every):.1f}, rare {statistics.mean(rare):.1f} ({each})")


if __name__ == "__main__":
    main()
