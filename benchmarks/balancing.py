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

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

import lightning_tricks as lt
from lightning_tricks.objectives.loss_balance import LossBalance
from lightning_tricks.recipes.digits import QUIET, DigitsData

LOSSES = ("digit", "ink", "odd")
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


def table(found: Found) -> str:
    """Return the means of each row, and in how many seeds it was better than equal weights."""
    return str(found)


def main() -> None:
    """Train, and write figures and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how many (default: 5)")
    seeds = range(parser.parse_args().seeds)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    found: Found = {}
    for unit in UNITS:
        for name, strategy in STRATEGIES.items():
            rows = [scores(seed, strategy, unit) for seed in seeds]
            found.setdefault(f"x{unit:g}", {})[name] = rows
            means = [statistics.mean(column) for column in zip(*rows, strict=True)]
            print(f"x{unit:g}", name, " ".join(f"{m:.3f}" for m in means), flush=True)


if __name__ == "__main__":
    main()
