"""A frozen backbone with BatchNorm, while a head learns on data that are not what it was trained on.

Judged by its running statistics, which must stay, and by its features in training, which must be those that
it has in evaluation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor

import lightning_tricks as lt
from benchmarks.peers.cases import Case, Verdict, answer, judged
from benchmarks.peers.openings import ours, scheduled
from benchmarks.peers.small import Net, fitted

QUESTION = (
    "Does a frozen backbone's BatchNorm keep its statistics, and normalise by them while the head learns?"
)


class Watched(Net):
    """Compares its features with those of a copy in evaluation mode."""

    def __init__(self) -> None:
        """Begin with statistics of other data."""
        super().__init__()
        with torch.no_grad():
            self.backbone(torch.randn(64, 4) + 1.0)
        self.pretrained = [copy.deepcopy(self.backbone).eval()]  # in a list, it is no child
        self.distance = 0.0

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits, and compare."""
        features = self.backbone(inputs)
        if self.training:
            with torch.no_grad():
                self.distance = max(self.distance, float((features - self.pretrained[0](inputs)).abs().max()))
        return self.head(features)


def asked(callbacks: Callable[[], list[Callback]], **settings: Any) -> Verdict:
    """Train one epoch with a frozen backbone."""
    module = Watched()
    fitted(*callbacks(), module=module, max_epochs=1, **settings)
    mean, before = module.backbone[1].running_mean, module.pretrained[0][1].running_mean
    moved = float((mean - before).abs().max())
    right = moved == 0.0 and module.distance < 1e-6
    return judged(right, f"running mean moved by {moved:.2f}, features off by {module.distance:.2f}")


CASES = [
    Case("`ProgressiveUnfreeze`", lambda: asked(ours)),
    Case("`Freeze`", lambda: asked(lambda: [lt.Freeze(params="backbone")])),
    Case(
        "Lightning `BackboneFinetuning(train_bn=False)`",
        lambda: asked(lambda: [BackboneFinetuning(unfreeze_backbone_at_epoch=9, train_bn=False)]),
        "lightning",
    ),
    Case("finetuning-scheduler", lambda: asked(scheduled), "finetuning-scheduler"),
    Case(
        "finetuning-scheduler, `frozen_bn_track_running_stats=False`",
        lambda: asked(lambda: scheduled(frozen_bn_track_running_stats=False)),
        "finetuning-scheduler",
    ),
]

if __name__ == "__main__":
    answer(QUESTION, CASES)
