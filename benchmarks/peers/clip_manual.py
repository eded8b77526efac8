"""Clipping to a norm of 0.1 in manual optimization, with a gradient scaler.

Judged by the norm of the gradients that the optimizer steps with, which must be 0.1: those of this network
have norms between 0.5 and 2. The scaler multiplies them by 64 until the step.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_, get_total_norm

import lightning_tricks as lt
from benchmarks.peers.cases import Case, Verdict, answer, judged
from benchmarks.peers.small import Net, fitted
from tests.toys import scaler_plugin

QUESTION = "In manual optimization with a gradient scaler, is the norm that is clipped the gradients' own?"
LIMIT = 0.1


class Manual(Net):
    """Optimizes by hand, and notes the norms that its optimizer steps with."""

    def __init__(self) -> None:
        """Begin without."""
        super().__init__()
        self.automatic_optimization = False
        self.norms: list[float] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD, which notes."""
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        optimizer.register_step_pre_hook(self.note)
        return optimizer

    def note(self, *_: Any) -> None:
        """Note the norm of all gradients."""
        self.norms.append(float(get_total_norm([p.grad for p in self.parameters()])))

    def clip(self, optimizer: Any) -> None:
        """Clip, if it is the module that does."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Step."""
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(cross_entropy(self(batch[0]), batch[1]))
        self.clip(optimizer)
        optimizer.step()


class ByModule(Manual):
    """https://lightning.ai/docs/pytorch/stable/common/optimization.html#gradient-clipping: manual."""

    def clip(self, optimizer: Any) -> None:
        """Clip as documented."""
        self.clip_gradients(optimizer, gradient_clip_val=LIMIT, gradient_clip_algorithm="norm")


class ByHook(Manual):
    """torch's function in the hook that Lightning calls with unscaled gradients."""

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip."""
        clip_grad_norm_(self.parameters(), LIMIT)


def asked(module: Manual, *callbacks: Callback, **settings: Any) -> Verdict:
    """Look at the norms of 15 steps."""
    fitted(*callbacks, module=module, plugins=[scaler_plugin()], **settings)
    low, high = min(module.norms), max(module.norms)
    return judged(
        abs(low - LIMIT) < 1e-3 > abs(high - LIMIT),
        f"norms of {low:.4f} to {high:.4f}, not {LIMIT}"
        if abs(low - LIMIT) > 1e-3
        else f"norms of {low:.4f}",
    )


CASES = [
    Case("`GradientClip`", lambda: asked(Manual(), lt.GradientClip(max_norm=LIMIT))),
    Case("Lightning `gradient_clip_val`", lambda: asked(Manual(), gradient_clip_val=LIMIT), "lightning"),
    Case("Lightning `self.clip_gradients`", lambda: asked(ByModule()), "lightning"),
    Case("torch `clip_grad_norm_` in `on_before_optimizer_step`", lambda: asked(ByHook()), "torch"),
]

if __name__ == "__main__":
    answer(QUESTION, CASES)
