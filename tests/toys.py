"""Small modules, a loader that can be fast-forwarded, and a Trainer without decorations."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import tests.spared  # noqa: F401  # spares Lightning what it does again and again
from lightning_tricks import GradientSurgery

BATCHES = 5

# Lightning's tips and device tables would bury what a failing test has to say.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


def seed(value: int) -> None:
    """Seed as ``torch.manual_seed`` does, which writes down a traceback for each kind of absent device."""
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(value)


class Loader:
    """``BATCHES`` batches an epoch, each made from its own seed; resumes in mid-epoch to the batch.

    With ``fixed``, every epoch has the same ones, as validation data has.
    """

    def __init__(self, batches: int = BATCHES, seed: int = 0, *, fixed: bool = False) -> None:
        self.batches, self.seed, self.fixed = batches, seed, fixed
        self.epoch = self.done = 0
        self.resumed = False
        self.batch_sampler = SimpleNamespace(sampler=self)  # where Lightning looks for set_epoch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = 0 if self.fixed else epoch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.done, self.resumed = self.done if self.resumed else 0, False
        while self.done < self.batches:
            generator = torch.Generator().manual_seed(self.seed * 10007 + self.epoch * 101 + self.done)
            self.done += 1
            yield (
                torch.randn(8, 4, generator=generator),
                torch.randint(0, 3, (8,), generator=generator),
            )

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.done = state["done"]
        self.resumed = self.done < self.batches


def optimizers_for(module: LightningModule, optimizers: Any) -> Any:
    """Return ``optimizers``, or Schedule-Free ones for them in a run with the technique that needs these."""
    callbacks = module._trainer.callbacks if module._trainer else []
    if all(type(callback).__name__ != "ScheduleFree" for callback in callbacks):
        return optimizers
    if isinstance(optimizers, list):
        return [optimizers_for(module, optimizer) for optimizer in optimizers]
    import schedulefree

    kind = getattr(schedulefree, f"{type(optimizers).__name__}ScheduleFree")
    return kind(optimizers.param_groups[0]["params"], lr=optimizers.param_groups[0]["lr"])


class Toy(LightningModule):
    """A body with BatchNorm and dropout, and a head; AdamW; reseeds itself before every step."""

    def __init__(self, lr: float = 0.05, optimizer: str = "AdamW", **options: Any) -> None:
        super().__init__()
        seed(1)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2))
        self.head = nn.Linear(8, 3)
        self.lr, self.optimizer, self.options = lr, optimizer, options

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        criterion = getattr(self, "criterion", cross_entropy)
        return criterion(self.head(self.body(batch[0])), batch[1])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        seed(1000 * self.current_epoch + batch_idx)
        return parted(self, self.loss(batch))

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch))

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.head(self.body(batch[0]))

    def configure_optimizers(self) -> Any:
        kind = getattr(torch.optim, self.optimizer)
        return optimizers_for(self, kind(self.parameters(), lr=self.lr, **self.options))


def parted(module: LightningModule, loss: Tensor) -> Any:
    """Return what ``training_step`` does, with ``loss`` in two parts for a technique that needs several.

    They pull against each other: the second wants large weights, and the first small ones besides.
    """
    if not any(isinstance(callback, GradientSurgery) for callback in module.trainer.callbacks):
        return loss
    learning = (p.abs().square().sum().to(loss) for p in module.parameters() if p.requires_grad)
    size = 0.01 * sum(learning, torch.zeros_like(loss))
    return {"loss": loss, "losses": {"small": loss + size, "large": -size}}


class TwoOptimizers(Toy):
    """Manual optimization: one optimizer for the body, one for the head, both stepped every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        seed(1000 * self.current_epoch + batch_idx)
        optimizers = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        for optimizer in optimizers:
            optimizer.step()

    def configure_optimizers(self) -> Any:
        body = torch.optim.AdamW(self.body.parameters(), lr=self.lr, **self.options)
        head = torch.optim.SGD(self.head.parameters(), lr=self.lr, momentum=0.9)
        return optimizers_for(self, [body, head])


class Compiled(Toy):
    """A body that torch compiles (with the backend that only traces), so its names carry a wrapper's."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.compile(self.body, backend="aot_eager")


def scaler_plugin(init_scale: float = 64.0, device: str = "cpu") -> MixedPrecision:
    """Return 16-mixed with a real gradient scaler, by default on the CPU."""
    scaler = torch.amp.GradScaler(device, init_scale=init_scale)
    return MixedPrecision("16-mixed", device, scaler)


def trainer(*callbacks: Callback, **settings: Any) -> Trainer:
    """Return a quiet CPU Trainer for three epochs; without logger and checkpoints unless asked."""
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 3,
        "logger": False,
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
    }
    return Trainer(callbacks=list(callbacks), **{**quiet, **settings})


class Logged(Callback):
    """Collects what ``prefix`` logs at each batch."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.rows.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def column(self, name: str) -> list[float]:
        return [row[f"{self.prefix}/{name}"] for row in self.rows]


class StopError(RuntimeError):
    """Raised by :class:`StopAfter`."""


class SaveAfter(Checkpoint):
    """Saves a checkpoint at the ``count``-th call of ``hook``."""

    def __init__(self, count: int, path: Path, hook: str = "on_train_batch_end") -> None:
        self.count, self.path, self.hook, self.seen = count, path, hook, 0

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._called("on_train_batch_end", trainer)

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        self._called("on_validation_end", trainer)

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        self._called("on_train_epoch_end", trainer)

    def _called(self, hook: str, trainer: Trainer) -> None:
        self.seen += hook == self.hook
        if self.seen == self.count and hook == self.hook:
            self._reached(trainer)

    def _reached(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.path)


class StopAfter(SaveAfter):
    """And then breaks off by an exception."""

    def _reached(self, trainer: Trainer) -> None:
        super()._reached(trainer)
        raise StopError


class Stops(Callback):
    """Lets the run end after so many batches, as EarlyStopping does."""

    def __init__(self, *, after: int) -> None:
        self.after = after

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step >= self.after


def weights(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def assert_equal(first: Any, second: Any, path: str = "") -> None:
    """Assert that two nested states are equal to the bit, and say where they are not."""
    if isinstance(first, dict):
        assert first.keys() == second.keys(), f"{path}: {sorted(first)} != {sorted(second)}"
        for key in first:
            assert_equal(first[key], second[key], f"{path}/{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), path
        for index, pair in enumerate(zip(first, second, strict=True)):
            assert_equal(*pair, f"{path}/{index}")
    elif isinstance(first, Tensor):
        same = first.dtype == second.dtype and torch.equal(first, second)
        assert same, f"{path}: {first} != {second}"
    else:
        assert first == second, f"{path}: {first!r} != {second!r}"
