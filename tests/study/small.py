"""A small regression, as a factory and as a LightningCLI project in files."""

from __future__ import annotations

import textwrap
from pathlib import Path

from tests.toys import Loader, Toy

QUIET = {"accelerator": "cpu", "devices": 1, "max_epochs": 2}


def build(seed):
    return Toy(), (Loader(3, seed=seed), Loader(2, seed=99, fixed=True)), dict(QUIET)


MODULE = """
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Net(LightningModule):
    def __init__(self, width: int = 4, lr: float = 0.1):
        super().__init__()
        self.save_hyperparameters()
        self.body = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1))
        print("said by the module")

    def training_step(self, batch, _):
        loss = (self.body(batch[0]) - batch[1]).square().mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, _):
        self.log("val_loss", (self.body(batch[0]) - batch[1]).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)

class Data(LightningDataModule):
    def setup(self, stage):
        assert stage in ("fit", "validate"), stage
        x = torch.randn(48, 4, generator=torch.Generator().manual_seed(0))
        y = x.sum(1, keepdim=True).sin()
        self.train, self.val = TensorDataset(x[:24], y[:24]), TensorDataset(x[24:], y[24:])

    def train_dataloader(self):
        return DataLoader(self.train, 8, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, 24)

    def test_dataloader(self):
        raise AssertionError("test data must be left alone")

class Fatal(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step > 2:
            raise RuntimeError("no more")
"""
CONFIG = """
seed_everything: 7
trainer:
  max_epochs: 2
  accelerator: cpu
  callbacks:
    - class_path: lightning_tricks.GradientClip
      init_args: {max_norm: 0.5}
    - class_path: lightning.pytorch.callbacks.LearningRateMonitor
    - class_path: lightning.pytorch.callbacks.TQDMProgressBar
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {monitor: val_loss, dirpath: kept}
    - class_path: lightning_tricks.WarmupCosine
      init_args: {warmup: 10%}
model:
  class_path: MODULE.Net
  init_args: {width: 3}
data:
  class_path: MODULE.Data
optimizer:
  class_path: torch.optim.Adam
  init_args: {lr: 0.01}
ckpt_path: null
"""


def project(folder: Path, name: str, **changes: str) -> Path:
    """Write a project of one module, whose name no other test uses, and return its configuration."""
    (folder / f"{name}.py").write_text(textwrap.dedent(MODULE))
    text = CONFIG.replace("MODULE", name)
    for before, after in changes.items():
        assert before in text
        text = text.replace(before, after)
    (folder / "config.yaml").write_text(text)
    return folder / "config.yaml"
