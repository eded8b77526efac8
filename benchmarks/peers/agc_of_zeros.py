"""Adaptive clipping (AGC) of a weight that begins with zeros, as the last of a residual branch does.

Judged by the paper's rule, arXiv:2102.06171, equation 3: a unit's gradient is cut to 0.01 of the larger of
its weights' norm and 0.001, so that zeros can leave zero: their step with rate 1 has the length 1e-5.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

import lightning_tricks as lt
from benchmarks.peers.cases import Case, Verdict, answer, judged
from benchmarks.peers.parts import cut
from benchmarks.peers.small import Net, fitted

QUESTION = "Can weights of zero learn under adaptive clipping?"
WANTED = 0.01 * 1e-3


def plain(module: nn.Module) -> torch.optim.Optimizer:
    """Return SGD with rate 1."""
    return torch.optim.SGD(module.parameters(), lr=1.0)


class Zero(Net):
    """A head of zeros, and what clips."""

    def __init__(self, clip: Callable[[list[nn.Parameter]], None] | None = None) -> None:
        """Take it."""
        super().__init__(plain)
        nn.init.zeros_(self.head.weight)
        self.clip = clip

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip."""
        if self.clip is not None:
            self.clip([self.head.weight])


def asked(*callbacks: Callback, clip: Callable[[list[nn.Parameter]], None] | None = None) -> Verdict:
    """Make one step."""
    module = fitted(*callbacks, module=Zero(clip), max_steps=1)
    lengths: Tensor = module.head.weight.detach().norm(dim=1)
    right = bool((lengths / WANTED - 1).abs().max() < 1e-3)
    return judged(right, f"a step of {float(lengths.min()):.1e}, by the paper {WANTED:.0e}")


def timms(parameters: list[nn.Parameter]) -> None:
    """Clip by timm's, with its defaults."""
    names = ("unitwise_norm", "adaptive_clip_grad")
    cut("timm", "timm/utils/agc.py", *names, torch=torch)["adaptive_clip_grad"](parameters)


def composers(parameters: list[nn.Parameter]) -> None:
    """Clip by Composer's ``GradientClipping(clipping_type="adaptive", clipping_threshold=0.01)``."""
    names = ("_apply_agc", "_get_clipped_gradient_coeff", "_unitwise_norm")
    file = "composer/algorithms/gradient_clipping/gradient_clipping.py"
    cut("mosaicml", file, *names, torch=torch)["_apply_agc"](parameters, clipping_threshold=0.01)


CASES = [
    Case(
        "`AdaptiveGradientClip`",
        lambda: asked(lt.AdaptiveGradientClip(clip=0.01, params="head.weight")),
    ),
    Case("timm `adaptive_clip_grad`", lambda: asked(clip=timms), "timm"),
    Case("Composer `GradientClipping`", lambda: asked(clip=composers), "mosaicml"),
]

if __name__ == "__main__":
    answer(QUESTION, CASES)
