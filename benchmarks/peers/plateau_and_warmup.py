"""A warm-up over the first steps, and a rate that is halved once a metric has stalled.

The metric never improves; each is set to halve the rate once, before the last epoch. Judged by the rate of
the last step: half of the base rate, 0.05.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback
from torch.optim.lr_scheduler import LambdaLR, LinearLR, ReduceLROnPlateau

import lightning_tricks as lt
from benchmarks.peers.cases import Case, Verdict, answer, judged
from benchmarks.peers.small import Net, fitted

QUESTION = "Do a warm-up and a decay on plateaus both count?"
STEPS = 4


class Stalling(Net):
    """Its metric never improves; notes the rates of its steps."""

    def __init__(self, warmup: Callable[[Any], Any] | None = None) -> None:
        """Take a scheduler that warms up, if any."""
        super().__init__()
        self.warmup, self.rates = warmup, []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log a constant."""
        self.log("val_loss", 1.0)

    def configure_optimizers(self) -> Any:
        """Return an optimizer, and two schedulers as Lightning documents them."""
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        optimizer.register_step_pre_hook(lambda *_: self.rates.append(optimizer.param_groups[0]["lr"]))
        if self.warmup is None:
            return optimizer
        plateau = {"scheduler": ReduceLROnPlateau(optimizer, factor=0.5, patience=1), "monitor": "val_loss"}
        return [optimizer], [{"scheduler": self.warmup(optimizer), "interval": "step"}, plateau]


def by_lambda(optimizer: torch.optim.Optimizer) -> Any:
    """Return a warm-up as most write it."""
    return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / STEPS))


def linear(optimizer: torch.optim.Optimizer) -> Any:
    """Return torch's own."""
    return LinearLR(optimizer, 1 / STEPS, total_iters=STEPS)


def asked(module: Stalling, *callbacks: Callback) -> Verdict:
    """Look at the last rate."""
    fitted(*callbacks, module=module, max_epochs=4)
    first, last = module.rates[0], module.rates[-1]
    right = abs(last - 0.05) < 1e-9 and first < 0.05
    return judged(right, f"the first rate is {first:.3f}, the last {last:.3f}")


CASES = [
    Case(
        "`LearningRate` and `PlateauDecay`",
        lambda: asked(
            Stalling(),
            lt.LearningRate(schedule=f"warmup({STEPS}) >> constant()"),
            lt.PlateauDecay(monitor="val_loss", factor=0.5, patience=2),
        ),
    ),
    Case("torch `LambdaLR` and `ReduceLROnPlateau`", lambda: asked(Stalling(by_lambda)), "torch"),
    Case("torch `LinearLR` and `ReduceLROnPlateau`", lambda: asked(Stalling(linear)), "torch"),
]

if __name__ == "__main__":
    answer(QUESTION, CASES)
