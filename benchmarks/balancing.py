"""What each way to balance losses is worth for three tasks on one network of the digits.

Which digit it is (cross entropy), whether it is odd (cross entropy), and how much ink its upper half holds
(squared error, standardised): two layers and three heads, 1,000 digits, 20 epochs of AdamW. Once the losses
are as they come, once that of the ink is counted in units of which it has a thousand. Of 797 other digits the
accuracies, in percent, and the share of the ink's variance that is explained; paired by seed.

    python -m benchmarks.balancing --seeds 5
"""

from __future__ import annotations

import argparse
import logging
import statistics
import warnings
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from rich.progress import track
from torch import Tensor, nn

import lightning_tricks as lt
from benchmarks.record import record
from lightning_tricks.objectives.loss_balance import LossBalance
from lightning_tricks.recipes.digits import QUIET, DigitsData

KINDS = {"digit": "classification", "ink": "regression", "odd": "classification"}
EQUAL = "`FixedWeights()`, equal"
STRATEGIES: dict[str, LossBalance] = {
    EQUAL: lt.FixedWeights(),
    '`FixedWeights({..., "ink": 0.001})`': lt.FixedWeights({"digit": 1.0, "ink": 0.001, "odd": 1.0}),
    "`MagnitudeBalance()`": lt.MagnitudeBalance(),
    "`UncertaintyBalance(kinds)`": lt.UncertaintyBalance(KINDS),
    "`UncertaintyBalance(kinds, start=0.0)`": lt.UncertaintyBalance(KINDS, start=0.0),
    '`GradNorm("trunk.3")`': lt.GradNorm("trunk.3"),
    '`GradNorm("trunk.3", alpha=0.12)`': lt.GradNorm("trunk.3", alpha=0.12),
    "`DynamicWeightAverage()`": lt.DynamicWeightAverage(),
    "`RandomWeights()`": lt.RandomWeights(),
}
UNITS = (1.0, 1000.0)

Found = dict[str, dict[str, list[list[float]]]]
"""Of each unit and strategy, of each seed: digit and odd in percent, and the share of ink explained."""


class ThreeTasks(lt.BalancedLosses, lt.OptimizerMixin, LightningModule):
    """Two layers, and a head for each task.

    Args:
        strategy: How losses are weighed.
        unit: What the loss of the ink is multiplied by.
    """

    optimizer_settings = lt.OptimizerSettings("AdamW", lr=2e-3, weight_decay=0.01)

    def __init__(self, strategy: LossBalance, unit: float) -> None:
        """Make the network."""
        super().__init__()
        self.loss_balance, self.unit = strategy, unit
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.heads = nn.ModuleDict(
            {"digit": nn.Linear(32, 10), "odd": nn.Linear(32, 2), "ink": nn.Linear(32, 1)}
        )

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Return what each head says."""
        hidden = self.trunk(images)
        return {name: head(hidden) for name, head in self.heads.items()}

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        found = self.outputs(images)
        return self.balance(
            {
                "digit": F.cross_entropy(found["digit"], labels),
                "odd": F.cross_entropy(found["odd"], labels % 2),
                "ink": self.unit * F.mse_loss(found["ink"][:, 0], ink(images)),
            }
        )


def ink(images: Tensor) -> Tensor:
    """Return how much ink the upper halves hold, of mean about 0 and variance about 1, shape (n,)."""
    return images[:, 0, :4].mean(dim=(1, 2)) * 6


@torch.no_grad()
def scores(seed: int, strategy: LossBalance, unit: float) -> list[float]:
    """Return the scores of the three tasks after a training."""
    data = DigitsData(seed=seed)
    torch.manual_seed(seed)
    model = ThreeTasks(strategy, unit)
    with torch.enable_grad(), redirect_stdout(StringIO()):  # which shows a table of groups each time
        Trainer(max_epochs=20, **QUIET).fit(model, data)
    images, labels = data.val_set.tensors
    found = model.eval().outputs(images)
    digit, odd = (
        100 * (found[name].argmax(1) == wanted).double().mean().item()
        for name, wanted in (("digit", labels), ("odd", labels % 2))
    )
    explained = 1 - F.mse_loss(found["ink"][:, 0], ink(images)) / ink(images).var()
    return [digit, odd, explained.item()]


def cell(values: tuple[float, ...], equal: tuple[float, ...], *, digits: int) -> str:
    """Return the mean, that of the differences to equal weights, and in how many seeds these are above 0."""
    mean = f"{statistics.mean(values):.{digits}f}"
    if values == equal:
        return mean
    gains = [value - other for value, other in zip(values, equal, strict=True)]
    wins = sum(gain > 0 for gain in gains)
    return f"{mean} ({statistics.mean(gains):+.{digits}f}, {wins} of {len(gains)})"


def table(found: Found) -> str:
    """Return a row for each strategy."""
    heads = [f"{task}, ink {unit}" for unit in found for task in ("digit", "odd", "ink")]
    lines = [f"| | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for name in STRATEGIES:
        cells = []
        for rows in found.values():
            pairs = zip(zip(*rows[name], strict=True), zip(*rows[EQUAL], strict=True), (1, 1, 3), strict=True)
            cells += [cell(values, equal, digits=digits) for values, equal, digits in pairs]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Train, and write figures and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how many (default: 5)")
    seeds = range(parser.parse_args().seeds)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    found: Found = {f"x{unit:g}": {name: [] for name in STRATEGIES} for unit in UNITS}
    trainings = [(unit, name, seed) for unit in UNITS for name in STRATEGIES for seed in seeds]
    for unit, name, seed in track(trainings, "balancing"):
        found[f"x{unit:g}"][name].append(scores(seed, STRATEGIES[name], unit))
    figures: dict[str, Any] = {"seeds": len(seeds), "digit, odd, ink": found}
    record("balancing", figures, table(found))


if __name__ == "__main__":
    main()
