"""A module that draws random numbers everywhere, a log in memory, and runs that are stopped and resumed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchmetrics import MeanMetric, MetricCollection, SumMetric

import lightning_tricks as lt
from lightning_tricks.lifecycle.randomness import random_states
from tests.toys import Loader, StopAfter, StopError, assert_equal, trainer, weights

SAMPLES, BATCH = 20, 4

Stop = tuple[str, int]
BATCHES: list[Stop] = [("on_train_batch_end", count) for count in range(1, 11)]
ENDS: list[Stop] = [(hook, count) for hook in ("on_validation_end", "on_train_epoch_end") for count in (1, 2)]
# The end of an inner batch, of an epoch's last, of a validation and of an epoch.
FEW: list[Stop] = [BATCHES[7], BATCHES[4], ENDS[0], ENDS[-1]]


def seed(value: int) -> None:
    """Seed all that is drawn from."""
    torch.manual_seed(value)
    np.random.seed(value)
    random.seed(value)


def sample(index: int, *, disturbed: bool) -> Tensor:
    """Return four features, the first of which is the sample's number."""
    value = torch.full((4,), float(index))
    if disturbed:
        value[1:] += torch.randn(3) + random.random() + np.random.rand()
    return value


class Samples(Dataset[Tensor]):
    """Samples that are disturbed at random whenever they are read."""

    def __init__(self, count: int = SAMPLES, *, disturbed: bool = True) -> None:
        self.count, self.disturbed = count, disturbed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        return sample(index, disturbed=self.disturbed)


class Stream(IterableDataset[Tensor]):
    """The same without a length; begins where its state says, once."""

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


class Own(Loader):
    """A loader of one's own, with a state, that disturbs its batches at random."""

    def __iter__(self) -> Iterator[Tensor]:
        for inputs, _ in super().__iter__():
            yield inputs + torch.randn(()) + random.random()


class OwnStream(Own):
    """The same without a length."""

    __len__ = None


class Learner(LightningModule):
    """Dropout without reseeding, and each kind of metric that Lightning knows."""

    def __init__(self, plateau: str | None = None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.4), nn.Linear(8, 1))
        self.mean, self.total, self.val_mean = MeanMetric(), SumMetric(), MeanMetric()
        self.both = MetricCollection([MeanMetric(), SumMetric()], prefix="both_")
        self.plateau = plateau
        self.seen: list[list[float]] = []

    def loss(self, batch: Tensor) -> Tensor:
        return (self.net(batch / SAMPLES) * (1 + random.random()) - 1).square().mean()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.seen.append([float(self.current_epoch), float(batch_idx), *batch[:, 0].tolist()])
        loss = self.loss(batch)
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("largest", loss, on_step=False, on_epoch=True, reduce_fx="max")
        self.log("sum", loss, on_step=False, on_epoch=True, reduce_fx=sum)
        self.mean.update(loss)
        self.total(loss)
        self.both.update(loss)
        self.log("mean", self.mean, on_step=False, on_epoch=True)
        self.log("total", self.total, on_step=True, on_epoch=True)
        self.log_dict(self.both, on_step=False, on_epoch=True)
        if batch_idx == 0:
            self.log("first", loss, on_step=False, on_epoch=True)
        return loss

    def on_train_start(self) -> None:
        torch.rand(3)  # which the uninterrupted run does once

    def on_train_epoch_start(self) -> None:
        torch.rand(1)

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
        watching = ReduceLROnPlateau(optimizer, factor=0.9, patience=0, threshold=0.3)
        config = {"scheduler": watching, "monitor": monitor, "interval": interval}
        return {"optimizer": optimizer, "lr_scheduler": config}


class Manual(Learner):
    """Two optimizers, stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        loss = super().training_step(batch, batch_idx)
        optimizers = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()

    def configure_optimizers(self) -> Any:
        first, rest = torch.optim.AdamW(self.net[0].parameters()), self.net[1:].parameters()
        return [first, torch.optim.SGD(rest, lr=0.01, momentum=0.9)]


class Log(DummyLogger):
    """Keeps what was logged, by name, step and epoch; the same again must be equal."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[tuple[str, int, int], float] = {}

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        epoch = int(metrics.get("epoch", -1))
        for name, value in metrics.items():
            key = (name, step, epoch)
            assert self.values.setdefault(key, value) == value, f"{key}: {self.values[key]}, then {value}"


def shuffled(count: int = 8, **options: Any) -> DataLoader[Tensor]:
    """Return a plain loader."""
    disturbed = not options.get("num_workers")
    return DataLoader(Samples(count, disturbed=disturbed), batch_size=BATCH, shuffle=True, **options)


class Run:
    """A run with ``ExactResume``.

    Attributes:
        module: What was trained.
        finished: Whether it came to its end.
        random: The random states there.
        held: What a checkpoint holds then.
    """

    def __init__(
        self,
        data: Callable[[], Any],
        root: Path,
        log: Log,
        *callbacks: Callback,
        module: Callable[[], Learner] = Learner,
        validation: Callable[[], Any] | None = shuffled,
        ckpt_path: Path | None = None,
        **settings: Any,
    ) -> None:
        self.module = module()
        seed(3)  # as a script does, the resumed one too
        settings = {name: value() if callable(value) else value for name, value in settings.items()}
        runner = trainer(lt.ExactResume(), *callbacks, default_root_dir=root, logger=log, **settings)
        validation_data = validation() if validation else None
        try:
            runner.fit(self.module, data(), validation_data, ckpt_path=ckpt_path)
        except StopError:
            self.finished = False
            for loop in (runner.fit_loop, runner.fit_loop.epoch_loop.val_loop):
                if loop._combined_loader is not None:
                    loop._combined_loader.reset()  # ends worker processes, as the end of this process would
        else:
            self.finished = True
            self.random = random_states()
            runner.save_checkpoint(root / "end.ckpt")
            self.held = torch.load(root / "end.ckpt", weights_only=True)


def assert_exact(data: Callable[[], Any], stop: Stop, root: Path, **options: Any) -> None:
    """Assert that a run stopped at the n-th call of a hook and resumed equals the uninterrupted one."""
    whole_log, log = Log(), Log()
    whole = Run(data, root / "whole", whole_log, **options)
    saved = root / "parts" / "stopped.ckpt"
    stopped = Run(data, root / "parts", log, StopAfter(stop[1], saved, stop[0]), **options)
    assert whole.finished and not stopped.finished
    resumed = Run(data, root / "parts", log, ckpt_path=saved, **options)
    assert stopped.module.seen + resumed.module.seen == whole.module.seen
    assert_equal(whole.random, resumed.random)
    assert_equal(weights(whole.module), weights(resumed.module))
    assert_equal(whole.held, resumed.held)
    assert log.values == whole_log.values
