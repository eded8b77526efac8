"""A finished run whose rate was annealed to nothing, resumed for as many epochs again.

Judged by the rates of the added steps: they must never rise, and end near 0, as those of a run do.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

import lightning_tricks as lt
from benchmarks.peers.cases import Case, Verdict, answer, judged
from benchmarks.peers.micro_batches import Rates, Scheduled
from benchmarks.peers.small import Net
from tests.toys import Loader, trainer

QUESTION = "When a finished run is resumed for longer, does the annealed rate fall to the new end?"


def asked(callbacks: Callable[[], list[Callback]], module: Callable[[], Net] = Net) -> Verdict:
    """Run two epochs of five batches, then two more."""
    path, first, seen = Path("first.ckpt"), trainer(*callbacks(), max_epochs=2), Rates()
    first.fit(module(), Loader())
    first.save_checkpoint(path)
    trainer(seen, *callbacks(), max_epochs=4).fit(module(), Loader(), ckpt_path=path, weights_only=True)
    rates = [round(rate, 3) for rate in seen.seen]
    falls = all(a >= b for a, b in pairwise(rates))
    told = "fall" if falls else "rise"
    return judged(falls and rates[-1] < 0.02, f"rates {told} from {rates[0]} to {rates[-1]}")


def cosine(optimizer: Any, trainer: Trainer) -> Any:
    """Return an annealing over the run's length."""
    return CosineAnnealingLR(optimizer, T_max=trainer.estimated_stepping_batches)


def one_cycle(optimizer: Any, trainer: Trainer) -> Any:
    """Return a cycle over the run's length."""
    return OneCycleLR(optimizer, 0.1, total_steps=trainer.estimated_stepping_batches)


CASES = [
    Case("`WarmupCosine`", lambda: asked(lambda: [lt.WarmupCosine(warmup=0)])),
    Case("torch `CosineAnnealingLR`", lambda: asked(list, lambda: Scheduled(cosine)), "torch"),
    Case("torch `OneCycleLR`", lambda: asked(list, lambda: Scheduled(one_cycle)), "torch"),
]

if __name__ == "__main__":
    answer(QUESTION, CASES)
