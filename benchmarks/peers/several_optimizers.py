"""An average every second step, in manual optimization with two optimizers that both step in each batch.

Judged by the average, which must have left where it began after 15 batches.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.nn.functional import cross_entropy

import lightning_tricks as lt
from benchmarks.peers.cases import Case, Verdict, answer, judged
from benchmarks.peers.small import Live, Net, farthest, fitted
from tests.toys import weights

QUESTION = "Does an average every second step move beside two optimizers?"


class Two(Net):
    """One optimizer for each part."""

    def __init__(self) -> None:
        """Optimize by hand."""
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Step both."""
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(cross_entropy(self(batch[0]), batch[1]))
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self) -> Any:
        """Return both."""
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.backbone, self.head)]


def asked(callback: Callback) -> Verdict:
    """Compare the average with its beginning and with the live weights, by the head's weights."""
    live = Live()
    left = weights(fitted(live, callback, module=Two()))
    start, trained = ({"w": one["head.weight"]} for one in (live.seen[0], live.seen[-1]))
    moved, apart = farthest({"w": left["head.weight"]}, start), farthest(start, trained)
    return judged(moved > 0, f"moved by {moved:.2f} while the weights moved by {apart:.2f}")


CASES = [
    Case("`EMAWeights(every=2)`", lambda: asked(lt.EMAWeights(decay=0.5, every=2))),
    Case(
        "Lightning `EMAWeightAveraging(update_every_n_steps=2)`",
        lambda: asked(EMAWeightAveraging(decay=0.5, update_every_n_steps=2)),
        "lightning",
    ),
]

if __name__ == "__main__":
    answer(QUESTION, CASES)
