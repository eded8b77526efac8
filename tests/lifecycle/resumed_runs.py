"""A module that draws random numbers everywhere, a log in memory, and runs that are stopped and resumed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.seed import _collect_rng_states
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchmetrics import MeanMetric, MetricCollection, SumMetric

import lightning_tricks as lt
from tests.toys import StopAfter, StopError, assert_equal, trainer, weights

SAMPLES, BATCH = 20, 4


class Noisy(Dataset[Tensor]):
    """Samples that carry their number and are disturbed at random whenever they are read."""

    def __init__(self, samples: int = SAMPLES, *, disturbed: bool = True) -> None:
        self.samples, self.disturbed = samples, disturbed

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Tensor:
        return sample(index, disturbed=self.disturbed)


class Stream(IterableDataset[Tensor]):
    """The same without a length; goes on from where its state says."""

    def __init__(self, *, disturbed: bool = True) -> None:
        self.disturbed, self.at, self.begin = disturbed, 0, 0

    def __iter__(self) -> Iterator[Tensor]:
        self.begin, self.at = 0, self.begin
        while self.at < SAMPLES:
            self.at += 1
            yield sample(self.at - 1, disturbed=self.disturbed)

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.begin = state["at"]


def sample(index: int, *, disturbed: bool) -> Tensor:
    """Return four features, the first of which is the sample's number."""
    value = torch.full((4,), float(index))
    if disturbed:
        value[1:] += torch.randn(3) + random.random() + np.random.rand()
    return value


class Learner(LightningModule):
    """Dropout without reseeding, draws of all kinds, and metrics of every kind that Lightning knows."""

    def __init__(self, *, plateau: str | None = None, optimizer: str = "AdamW") -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.4), nn.Linear(8, 1))
        self.mean, self.total = MeanMetric(), SumMetric()
        self.both = MetricCollection([MeanMetric(), SumMetric()], prefix="both_")
        self.val_mean = MeanMetric()
        self.plateau = plateau
        self.seen: list[list[float]] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.seen.append([float(self.current_epoch), float(batch_idx), *batch[:, 0].tolist()])
        scale = 1 + random.random() + np.random.rand()
        loss = (self.net(batch / SAMPLES) * scale - 1).square().mean()
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("largest", loss, on_step=False, on_epoch=True, reduce_fx="max")
        self.log("sum", loss, on_step=False, on_epoch=True, reduce_fx=torch.sum)
        self.mean.update(loss)
        self.log("mean", self.mean, on_step=False, on_epoch=True)
        self.log("total", self.total, on_step=True, on_epoch=True) if self.total(loss) > -1 else None
        self.both.update(loss)
        self.log_dict(self.both, on_step=False, on_epoch=True)
        if batch_idx == 0:
            self.log("first", loss, on_step=False, on_epoch=True)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("drawn", torch.rand(()))

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        error = (self.net(batch / SAMPLES) - torch.rand(())).square().mean()
        self.log("val_loss", error)
        self.val_mean.update(error)
        self.log("val_mean", self.val_mean)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        if self.plateau is None:
            return optimizer
        monitor, interval = self.plateau.split("/")
        watching = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.9, patience=0, threshold=0.3)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": watching, "monitor": monitor, "interval": interval},
        }


class Log(DummyLogger):
    """Keeps what was logged, by name, step and epoch; the same again must be equal."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[tuple[str, int, int], float] = {}

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        epoch = int(metrics["epoch"])
        for name, value in metrics.items():
            key = (name, step, epoch)
            assert self.values.setdefault(key, value) == value, f"{key}: {self.values[key]}, then {value}"


class Run:
    """One run: its module, its Trainer, and the random states that it ends with."""

    def __init__(self, data: Callable[[], Any], root: Path, log: Log, *callbacks: Callback, **options: Any):
        module_options = {k: options.pop(k) for k in ("plateau",) if k in options}
        validation = options.pop("validation", lambda: DataLoader(Noisy(8), batch_size=BATCH, shuffle=True))
        ckpt_path = options.pop("ckpt_path", None)
        self.module = Learner(**module_options)
        # What a script does before ``fit``, the resumed one too.
        torch.manual_seed(3)
        np.random.seed(3)
        random.seed(3)
        self.trainer = trainer(lt.ExactResume(), *callbacks, default_root_dir=root, logger=log, **options)
        val_data = validation() if validation else None
        try:
            self.trainer.fit(self.module, data(), val_data, ckpt_path=ckpt_path)
        except StopError:
            self.random = None
        else:
            self.random = states()
            self.trainer.save_checkpoint(root / "end.ckpt")
            self.held = torch.load(root / "end.ckpt", weights_only=True)


def states() -> dict[str, Any]:
    """Return the random states, in a form that can be compared."""
    found = _collect_rng_states()
    return {**found, "numpy": [found["numpy"][1].tolist(), *found["numpy"][2:]]}


def assert_exact(
    data: Callable[[], Any], stop: tuple[str, int], root: Path, *, warns: str | None = None, **options: Any
) -> None:
    """Assert that a run stopped at the n-th call of a hook and resumed equals the uninterrupted one."""
    whole_log, log = Log(), Log()
    whole = Run(data, root / "whole", whole_log, **options)
    saved = root / "parts" / "stopped.ckpt"
    stopped = Run(data, root / "parts", log, StopAfter(stop[1], saved, stop[0]), **options)
    assert stopped.random is None, "the run was not stopped"
    # Another process has drawn other numbers.
    torch.manual_seed(99)
    parts = Run(data, root / "parts", log, ckpt_path=saved, **options)
    seen = stopped.module.seen + parts.module.seen
    assert seen == whole.module.seen
    assert_equal(whole.random, parts.random)
    assert_equal(weights(whole.module), weights(parts.module))
    assert_equal(whole.held, parts.held)
    assert log.values == whole_log.values
