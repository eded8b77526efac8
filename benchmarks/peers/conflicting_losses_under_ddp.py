"""Two losses that pull against each other, in two processes with different data.

Judged by the weights of both processes after three epochs, which must be equal to the bit, as those of the
sum of the losses are.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import lightning_tricks as lt
from benchmarks.peers.cases import Case, Verdict, answer
from benchmarks.peers.small import Net
from benchmarks.peers.unfreeze_under_ddp import agreed

QUESTION = "Under DDP, do the processes agree on the gradient that is made of several losses'?"


class Two(Net):
    """A head for the classes, and one for them in the opposite order."""

    def __init__(self) -> None:
        """Add the second."""
        super().__init__()
        self.other = nn.Linear(8, 3)

    def losses(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return both, and the features that they share."""
        features = self.backbone(batch[0])
        first = cross_entropy(self.head(features), batch[1])
        return first, cross_entropy(self.other(features), 2 - batch[1]), features

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Return them as ours wants them."""
        first, second, _ = self.losses(batch)
        return {"loss": first + second, "losses": {"first": first, "second": second}}


class TorchJDs(Two):
    """https://torchjd.org/stable/examples/lightning_integration, with PCGrad."""

    def __init__(self) -> None:
        """Optimize by hand."""
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Make a gradient of both."""
        from torchjd.aggregation import PCGrad
        from torchjd.autojac import jac_to_grad, mtl_backward

        first, second, features = self.losses(batch)
        optimizer = self.optimizers()
        mtl_backward([first, second], features=features)
        jac_to_grad(self.backbone.parameters(), PCGrad())
        optimizer.step()
        optimizer.zero_grad()


def asked(module: Two, *callbacks: Callback) -> Verdict:
    """Train in both processes."""
    return agreed(module, list(callbacks))


CASES = [
    Case("`GradientSurgery`", lambda: asked(Two(), lt.GradientSurgery(method=lt.PCGrad()))),
    Case("torchjd", lambda: asked(TorchJDs()), "torchjd"),
]

if __name__ == "__main__":
    answer(QUESTION, CASES)
