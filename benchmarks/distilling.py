"""What teachers are worth to a small network on digits of which few have labels, or many a wrong one.

A student of 16 hidden units learns 100 digits, or 1,000 of whose labels 30 % are drawn anew; its teachers of
256 learnt the same before it, with mixup, or in the last column the same images with true labels. Accuracies
on the other digits, with true labels, in percent; all students of a seed begin with the same weights.

    python -m benchmarks.distilling --seeds 5
"""

from __future__ import annotations

import argparse
import logging
import statistics
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from benchmarks.record import record
from lightning_tricks import Distillation, Mixup, Teacher, Teachers
from lightning_tricks.recipes.digits import QUIET, DigitsClassifier, DigitsData

NOISY = {"label_noise": 0.3}
DATA: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "100 digits": (100, {"training": 100}, {"training": 100}),
    "1,000 digits, 30 % of labels drawn anew": (20, NOISY, NOISY),
    "likewise, but not for the teachers": (20, NOISY, {}),
}
"""The epochs, and the settings of the student's and the teachers' data."""
Networks = list[nn.Module]
LESSONS: dict[str, Callable[[Networks], Teachers]] = {
    "`Teachers(one)`": lambda all_three: Teachers(all_three[0]),
    "`Teachers(one, alpha=0.9)`": lambda all_three: Teachers(all_three[0], alpha=0.9),
    "`Teachers(one, alpha=0.9, temperature=1.0)`": lambda all_three: Teachers(
        all_three[0], alpha=0.9, temperature=1.0
    ),
    "`Teachers(three, alpha=0.9, temperature=1.0)`": lambda all_three: Teachers(
        all_three, alpha=0.9, temperature=1.0
    ),
    "the same of one, and its hidden features": lambda all_three: Teachers(
        Teacher(all_three[0], features={"network.2": "2"}), alpha=0.9, temperature=1.0
    ),
}


class Student(Distillation, DigitsClassifier):
    """Learns digits from labels and teachers."""

    def __init__(self, network: nn.Module, teachers: Teachers) -> None:
        """Take both."""
        super().__init__(network)
        self.teachers = teachers
        if teachers.matches_features:
            self.build_projections(torch.zeros(1, 1, 8, 8))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.distill(self(batch[0]), batch)


class Ensemble(nn.Module):
    """The mean prediction of several networks."""

    def __init__(self, networks: Networks) -> None:
        """Take the networks."""
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logarithm of the mean."""
        return torch.stack([network(images).softmax(1) for network in self.networks]).mean(0).log()


def network(width: int, seed: int) -> nn.Module:
    """Return two layers."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def accuracies(
    epochs: int, settings: dict[str, Any], of_teachers: dict[str, Any], seed: int
) -> dict[str, float]:
    """Return what each way to learn comes to."""

    def trained(module: DigitsClassifier, *callbacks: Callback, data: dict[str, Any] = settings) -> float:
        trainer = Trainer(max_epochs=epochs, callbacks=[*callbacks], **QUIET)
        trainer.fit(module, DigitsData(seed=seed, **data))
        return 100 * trainer.callback_metrics["val_accuracy"].item()

    def mixup() -> Mixup:
        return Mixup(classes=10, alpha=1.0, seed=seed)

    found = {
        "labels alone": trained(DigitsClassifier(network(16, seed))),
        "labels alone, `Mixup(alpha=1)`": trained(DigitsClassifier(network(16, seed)), mixup()),
    }
    teachers = [DigitsClassifier(network(256, 1000 * (1 + index) + seed)) for index in range(3)]
    theirs = [trained(teacher, mixup(), data=of_teachers) for teacher in teachers]
    networks = [teacher.network for teacher in teachers]
    for name, lesson in LESSONS.items():
        found[name] = trained(Student(network(16, seed), lesson(networks)))
    found["the teacher, 16 times as large"] = theirs[0]
    together = Trainer(**QUIET).validate(
        DigitsClassifier(Ensemble(networks)), DigitsData(seed=seed, **settings), verbose=False
    )
    found["three teachers together"] = 100 * together[0]["val_accuracy"]
    return found


def cell(values: list[float], plain: list[float]) -> str:
    """Return the mean, and the least and greatest gain over ``plain`` of the same seed."""
    gains = [value - other for value, other in zip(values, plain, strict=True)]
    span = "" if not any(gains) else f" ({min(gains):+.1f} to {max(gains):+.1f})"
    return f"{statistics.mean(values):.1f}{span}"


def main() -> None:
    """Print and write a line for each way to learn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how many (default: 5)")
    # Others than those with which the settings were looked for.
    seeds = [100 + seed for seed in range(parser.parse_args().seeds)]
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    figures: dict[str, dict[str, list[float]]] = {}
    for data, settings in DATA.items():
        for seed in seeds:
            for name, value in accuracies(*settings, seed).items():
                figures.setdefault(name, {}).setdefault(data, []).append(value)
    lines = [f"| | {' | '.join(DATA)} |", "|---|---:|---:|---:|"]
    for name, by_data in figures.items():
        cells = [cell(values, figures["labels alone"][data]) for data, values in by_data.items()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    record("distilling", {"seeds": seeds, "accuracies": figures}, "\n".join(lines))


if __name__ == "__main__":
    main()
