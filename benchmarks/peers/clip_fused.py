"""Clipping beside a fused optimizer in mixed precision, with and without a gradient scaler.

Judged by one step of SGD with rate 1 and gradients of a norm above 1: it must have the length of the limit,
0.1.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback
from torch import nn

import lightning_tricks as lt
from benchmarks.peers.cases import Case, Verdict, answer, judged
from benchmarks.peers.small import Live, Net, fitted
from tests.toys import scaler_plugin

QUESTION = "Beside a fused optimizer in mixed precision, is the step as long as the limit?"
LIMIT = 0.1


def fused(module: nn.Module) -> torch.optim.Optimizer:
    """Return one with rate 1."""
    return torch.optim.SGD(module.parameters(), lr=1.0, fused=True)


def asked(*callbacks: Callback, scaler: bool, **settings: Any) -> Verdict:
    """Make one step."""
    live, module = Live(), Net(fused)
    how = {"plugins": [scaler_plugin()]} if scaler else {"precision": "bf16-mixed"}
    fitted(live, *callbacks, module=module, max_steps=1, **how, **settings)
    names = dict(module.named_parameters())
    squares = [(live.seen[1][name] - live.seen[0][name]).square().sum() for name in names]
    length = float(torch.stack(squares).sum().sqrt())
    return judged(abs(length - LIMIT) < 1e-3, f"a step of {length:.4f}")


CASES = [
    Case("`GradientClip`, bf16-mixed", lambda: asked(lt.GradientClip(max_norm=LIMIT), scaler=False)),
    Case("`GradientClip`, 16-mixed", lambda: asked(lt.GradientClip(max_norm=LIMIT), scaler=True)),
    Case(
        "Lightning `gradient_clip_val`, bf16-mixed",
        lambda: asked(scaler=False, gradient_clip_val=LIMIT),
        "lightning",
    ),
    Case(
        "Lightning `gradient_clip_val`, 16-mixed",
        lambda: asked(scaler=True, gradient_clip_val=LIMIT),
        "lightning",
    ),
]

if __name__ == "__main__":
    answer(QUESTION, CASES)
