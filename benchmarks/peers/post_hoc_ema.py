"""An exponential average of relative width 0.15 put together after a run of weights that grow by 1 a step.

Judged by arXiv:2312.02696: the average of power gamma lies at (gamma + 1) / (gamma + 2) of the run's length.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

import lightning_tricks as lt
from benchmarks.peers.cases import Case, Verdict, answer, judged
from tests.toys import trainer

QUESTION = "Is a post-hoc average the one that was asked for, whatever its updates' distance?"
STEPS, WIDTH = 500, 0.15


def wanted() -> float:
    """Return where the average lies, as a share of the run; gamma by bisection of the paper's formula."""
    low, high = 0.0, 100.0
    for _ in range(100):
        gamma = (low + high) / 2
        width = math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))
        low, high = (gamma, high) if width > WIDTH else (low, gamma)
    return (gamma + 1) / (gamma + 2)


class Growing(LightningModule):
    """A weight that each step makes larger by 1."""

    def __init__(self) -> None:
        """Begin with 0."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return a loss with the gradient -1."""
        return -self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD with rate 1."""
        return torch.optim.SGD(self.parameters(), lr=1.0)


def verdict(weight: Tensor) -> Verdict:
    """Compare."""
    share = float(weight) / STEPS
    return judged(abs(share / wanted() - 1) < 0.02, f"at {share:.4f} of the run, by the paper {wanted():.4f}")


def ours(every: int) -> Verdict:
    """Train, then put it together."""
    keep = lt.PostHocEMA(every=every, snapshot_every=50)
    run = trainer(keep, max_epochs=1, default_root_dir=".", log_every_n_steps=STEPS)
    run.fit(Growing(), torch.utils.data.DataLoader(range(STEPS)))
    (folder,) = Path().rglob("post_hoc_ema")
    return verdict(lt.synthesize_ema(folder, sigma_rel=WIDTH)["weight"])


def ema_pytorchs(every: int) -> Verdict:
    """https://github.com/lucidrains/ema-pytorch#usage, whose example has ``update_every=10``."""
    from ema_pytorch import PostHocEMA

    module = nn.Linear(1, 1, bias=False)
    keep = PostHocEMA(
        module,
        sigma_rels=(0.05, 0.3),
        update_every=every,
        checkpoint_every_num_steps=50,
        checkpoint_dtype=torch.float32,
    )
    for step in range(1, STEPS + 1):
        module.weight.data.fill_(float(step))
        keep.update()
    return verdict(keep.synthesize_ema_model(sigma_rel=WIDTH).ema_model.weight)


CASES = [
    Case("`PostHocEMA`", lambda: ours(1)),
    Case("`PostHocEMA(every=10)`", lambda: ours(10)),
    Case("ema-pytorch `PostHocEMA(update_every=1)`", lambda: ema_pytorchs(1), "ema-pytorch"),
    Case("ema-pytorch `PostHocEMA(update_every=10)`", lambda: ema_pytorchs(10), "ema-pytorch"),
]

if __name__ == "__main__":
    answer(QUESTION, CASES)
