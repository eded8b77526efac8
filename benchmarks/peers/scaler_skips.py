"""A step that the gradient scaler cancels because gradients overflow.

Judged by the sum by hand over the weights after each step that was made: a step that was not must not count.
The scaler runs on the CPU, where float16 is bfloat16 but the scaler's work is the same.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor

import lightning_tricks as lt
from benchmarks.peers.cases import Case, Verdict, answer, judged
from benchmarks.peers.small import Live, Net, ema_of, farthest, fitted
from tests.toys import scaler_plugin, weights

QUESTION = "Does a step that the gradient scaler cancelled leave an average where it is?"
DECAY = 0.5


class Overflowing(Net):
    """The gradients of each epoch's last two batches overflow."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss."""
        loss = super().training_step(batch, batch_idx)
        return loss * torch.inf if batch_idx >= 3 else loss


def asked(callback: Callback, *, begins: int = 0) -> Verdict:
    """Compare with the sum by hand, which ``begins`` at that of the weights that were seen."""
    live = Live()
    module = Overflowing()
    left = weights(fitted(live, callback, module=module, max_epochs=1, plugins=[scaler_plugin()]))
    names = dict(module.named_parameters())
    seen = [{name: one[name] for name in names} for one in live.seen]
    made = [one for before, one in pairwise(seen) if farthest(before, one)]
    off = farthest(ema_of([seen[0], *made][begins:], DECAY), {name: left[name] for name in names})
    told = f"{off:.0e} from the sum by hand over {len(made)} real steps of {len(seen) - 1}"
    return judged(off < 1e-6, told)


CASES = [
    Case("`EMAWeights`", lambda: asked(lt.EMAWeights(decay=DECAY, decay_warmup=False))),
    Case(
        "Lightning `EMAWeightAveraging`",
        lambda: asked(EMAWeightAveraging(decay=DECAY), begins=1),
        "lightning",
    ),
]

if __name__ == "__main__":
    answer(QUESTION, CASES)
