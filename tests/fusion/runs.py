"""What the tests of the callback share: runs, and spies in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lightning_tricks.core.select import clean_name
from lightning_tricks.fusion.fusion import WeightFusion
from lightning_tricks.lifecycle.technique import Technique
from tests.toys import Loader, Toy, trainer, weights


class Epochs(Callback):
    """Notes the weights at the end of each epoch, and those of each batch."""

    def __init__(self) -> None:
        self.ends: list[dict[str, Tensor]] = []
        self.steps: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        self.steps.append(weights(pl_module))

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.ends.append(weights(pl_module))


class Normed(Toy):
    """Validation logs the norm of the weights, which an average lowers."""

    def validation_step(self, batch, batch_idx) -> None:
        super().validation_step(batch, batch_idx)
        self.log("norm", sum(p.square().sum() for p in self.parameters()).sqrt())


class Scripted(Toy):
    """Validation logs what it is told to, epoch by epoch."""

    def __init__(self, *metrics: float) -> None:
        super().__init__()
        self.metrics = metrics

    def validation_step(self, batch, batch_idx) -> None:
        epoch = min(self.current_epoch, len(self.metrics) - 1)
        self.log("metric", self.metrics[epoch])


@final
@dataclass(eq=False, repr=False, kw_only=True)
class HalfAverage(Technique):
    """Averages half and half after each step, shows it in validation and leaves it in the module."""

    start: int = 0
    evaluate: bool = True
    _mean: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _live: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _over: bool = field(default=False, init=False, repr=False)
    _module: Any = field(default=None, init=False, repr=False)

    def claims(self):
        return [self.claim("eval_weights", None)]

    def begin(self, trainer, pl_module) -> None:
        self._module = pl_module

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        if self.clock.position > self.start:
            for name, value in pl_module.named_parameters():
                mean = self._mean.setdefault(clean_name(name), value.detach().clone())
                mean.lerp_(value.detach(), 0.5)

    @property
    def evaluates_average(self) -> bool:
        return self.evaluate

    def average(self) -> dict[str, Tensor] | None:
        return self._mean or None

    def _put(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self._module.named_parameters():
                value.copy_(values.get(clean_name(name), value))

    def on_validation_start(self, trainer, pl_module) -> None:
        self._live = {clean_name(n): v.detach().clone() for n, v in pl_module.named_parameters()}
        if self.evaluate:
            self._put(self._mean)

    def on_validation_end(self, trainer, pl_module) -> None:
        self._put(self._live)

    def finish(self, trainer, pl_module) -> None:
        self._live = {clean_name(n): v.detach().clone() for n, v in pl_module.named_parameters()}
        self._put(self._mean)
        self._over = True
        self.conductor.on_next_fit(self._back)

    def _back(self) -> None:
        self._over = False
        self._put(self._live)

    def saved(self) -> dict[str, Any]:
        return {"live": self._live} if self._over else {}

    def read_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        self._module = pl_module
        self._put(checkpoint["callbacks"]["HalfAverage"]["state"].get("live", {}))


def loaders(*, val: bool = True) -> tuple[Loader, ...]:
    """Return training data, and validation data that are the same each epoch."""
    return (Loader(), Loader(2, seed=9, fixed=True)) if val else (Loader(),)


def fit(
    root: Path,
    *callbacks: Callback,
    module: Toy | None = None,
    ckpt_path: Path | None = None,
    val: bool = True,
    **settings: Any,
) -> tuple[Toy, Trainer]:
    """Train three epochs of five batches and return the module and its Trainer."""
    module = module or Toy()
    runner = trainer(*callbacks, default_root_dir=root, **settings)
    runner.fit(module, *loaders(val=val), ckpt_path=ckpt_path)
    return module, runner


def always(**settings: Any) -> WeightFusion:
    """Return a fusion that asks no metric and leaves BatchNorm as it is fused."""
    return WeightFusion(**{"keep": "always", "update_batchnorm": False, **settings})


def mean(models: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of models, integers from the last."""
    return {
        name: torch.stack([m[name].double() for m in models]).mean(0).to(last.dtype)
        if last.is_floating_point()
        else last
        for name, last in models[-1].items()
    }


def state_of(runner: Trainer, folder: Path) -> dict[str, Any]:
    """Return what a checkpoint holds for the fusion."""
    runner.save_checkpoint(folder / "state.ckpt")
    return torch.load(folder / "state.ckpt", weights_only=True)["callbacks"]["WeightFusion"]
