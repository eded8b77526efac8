"""What a run showed: the weights after each step and in each evaluation, and runs to watch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_tricks import LAWA, EMAWeights, SWAWeights
from lightning_tricks.averaging.averaged import AveragedWeights
from tests.toys import Loader, Toy, trainer, weights

KINDS: dict[str, Callable[..., AveragedWeights]] = {
    "EMAWeights": lambda **others: EMAWeights(decay=0.9, **others),
    "SWAWeights": lambda **others: SWAWeights(start=2, every=2, batches=2, **others),
    "LAWA": lambda **others: LAWA(k=3, every=2, store="memory", batches=2, **others),
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


class Watch(Callback):
    """Keeps copies of the weights.

    Attributes:
        starts: Those at the start of each training.
        steps: Those at the first start, and then after each batch in which an optimizer stepped.
        seen: Those in the first batch of each evaluation.
    """

    def __init__(self) -> None:
        self.starts: list[dict[str, Tensor]] = []
        self.steps: list[dict[str, Tensor]] = []
        self.seen: list[dict[str, Tensor]] = []
        self._position = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.starts.append(weights(pl_module))
        self.steps = self.steps or [weights(pl_module)]
        self._position = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step > self._position:
            self._position = trainer.global_step
            self.steps.append(weights(pl_module))

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._see(pl_module, _[1])

    def on_test_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._see(pl_module, _[1])

    def on_predict_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._see(pl_module, _[1])

    def _see(self, pl_module: LightningModule, batch_idx: int) -> None:
        if batch_idx == 0:
            self.seen.append(weights(pl_module))


def watched(
    average: AveragedWeights, module: LightningModule | None = None, *callbacks: Callback, **settings: Any
) -> tuple[LightningModule, Watch, Trainer]:
    """Train ``module`` (a toy unless given) with ``average``; return it, what was seen, the Trainer."""
    module, watch = module or Toy(), Watch()
    runner = trainer(average, watch, *callbacks, **settings)
    runner.fit(module, Loader(), Loader(2, seed=9))
    return module, watch, runner


def live_of(average: AveragedWeights, module: LightningModule) -> dict[str, Tensor]:
    """Return the live weights after a fit."""
    with average.live_weights():
        return weights(module)


def differ(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Return whether any weight differs."""
    return any(not torch.equal(first[key], second[key]) for key in first)


def parameters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a toy's state without its buffers."""
    return {name: value for name, value in state.items() if "running" not in name and "num_" not in name}


def slow_twin(
    steps: list[dict[str, Tensor]], decay: Any, *, warmup: bool, every: int, start: int
) -> dict[str, Tensor]:
    """The average in the paper's notation: one weight, one decay at a time."""
    theta = steps
    m = theta[start]
    product = 1.0
    for t in range(len(steps) - 1 - start):
        d = decay(start + t + 1)
        if warmup:
            d = min(d, (1 + t) / (10 + t))
        product = product * d
        if (t + 1) % every == 0:
            m = {key: product * m[key] + (1 - product) * theta[start + t + 1][key] for key in m}
            product = 1.0
    return m
