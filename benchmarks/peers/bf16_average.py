"""The average of weights in bfloat16 that are 0 after the first step, 1 after the second, and stay there.

Judged by the sum by hand: after t steps with a decay of 0.99 it is 1 - 0.99 ** (t - 1). In bfloat16 an
average stands still once a step is less than half of the distance to its next value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn

import lightning_tricks as lt
from benchmarks.peers.beside import KINDS, Kind
from benchmarks.peers.cases import Case, Verdict, answer, judged
from tests.toys import trainer

QUESTION = "Does an average of weights in bfloat16 move?"
DECAY, STEPS = 0.99, 300
WANTED = 1 - DECAY ** (STEPS - 1)


class Stepping(LightningModule):
    """Weights of 0 that the second step, of SGD with rate 1, makes 1."""

    def __init__(self) -> None:
        """Begin with 0."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss."""
        return 0.5 * (self.weight - min(batch_idx, 1)).square().sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD."""
        return torch.optim.SGD(self.parameters(), lr=1.0)


def verdict(value: Tensor) -> Verdict:
    """Judge the average."""
    found = float(value.flatten()[0])
    return judged(abs(found / WANTED - 1) < 0.01, f"{found:.4f}, by hand {WANTED:.4f}")


def asked(callback: Callback) -> Verdict:
    """Let a callback leave the average in the module."""
    module = Stepping()
    run = trainer(callback, precision="bf16-true", max_epochs=1, log_every_n_steps=1000)
    run.fit(module, torch.utils.data.DataLoader(range(STEPS)))
    return verdict(module.weight.detach())


def beside(kind: Callable[..., Kind]) -> Verdict:
    """Update an average after each step."""
    module = nn.Linear(4, 4, bias=False).bfloat16()
    nn.init.zeros_(module.weight)
    average = kind(module, DECAY)
    for step in range(1, STEPS + 1):
        average.update(module, step)
        nn.init.ones_(module.weight)
    return verdict(average.values()["weight"])


CASES = [
    Case("`EMAWeights`", lambda: asked(lt.EMAWeights(decay=DECAY, decay_warmup=False))),
    Case('`EMAWeights(dtype="bfloat16")`', lambda: asked(lt.EMAWeights(decay=DECAY, dtype="bfloat16"))),
    Case("Lightning `EMAWeightAveraging`", lambda: asked(EMAWeightAveraging(decay=DECAY)), "lightning"),
    *[Case(who, lambda kind=kind: beside(kind), peer) for who, (peer, kind) in KINDS.items()],
]

if __name__ == "__main__":
    answer(QUESTION, CASES)
