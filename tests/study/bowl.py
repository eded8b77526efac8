"""A training of no time whose metric is a known function of its settings, and a search over them."""

from __future__ import annotations

import math

import torch
from lightning.pytorch import LightningModule

from lightning_tricks import Search
from tests.study.small import QUIET
from tests.toys import Loader


class Bowl(LightningModule):
    """Its metric falls towards ``(x - 3) ** 2 + y`` by a hundredth per epoch."""

    def __init__(self, x, y, fails):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.x, self.y, self.fails = x, y, fails

    def training_step(self, batch, batch_idx):
        if self.fails == "raises" and self.trainer.max_epochs > 1:  # and not in the rehearsal
            raise RuntimeError("no\nmore")
        return self.weight * 0.0

    def validation_step(self, batch, batch_idx):
        value = (self.x - 3.0) ** 2 + self.y + 0.01 * (10 - self.current_epoch)
        self.log("val_loss", math.nan if self.fails == "diverges" else value)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def bowl(seed, x=0.0, y=1, fails="no", epochs=2):
    loaders = Loader(1), Loader(1, fixed=True)
    return Bowl(x, y, fails), loaders, {**QUIET, "max_epochs": epochs}


SPACE = {"x": {"low": -10.0, "high": 10.0}, "y": [0, 1, 2]}


def search(path, space=SPACE, build=bowl, **options):
    return Search(build, space, **{"storage": path / "study.journal", "trials": 12, **options})
