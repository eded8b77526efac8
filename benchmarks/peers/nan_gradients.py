"""One batch whose loss is not a number, in a run of 15.

Judged by the weights at the end, which must be finite, and by those before and after that batch, which must
be equal; or by an error.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

import lightning_tricks as lt
from benchmarks.peers.cases import Case, StoppedError, Verdict, answer, judged
from benchmarks.peers.parts import cut
from benchmarks.peers.small import Live, Net, farthest, fitted

QUESTION = "Does a network survive one batch whose loss is not a number?"


class Spoilt(Net):
    """With such a batch, the 8th; it clips with ``clip``."""

    def __init__(self, clip: Any = None) -> None:
        """Take what clips."""
        super().__init__()
        self.clip = clip

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss."""
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss * torch.nan if self.current_epoch == 1 and batch_idx == 2 else loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip."""
        if self.clip is not None:
            self.clip(list(self.parameters()))


def asked(*callbacks: Callback, clip: Any = None, **settings: Any) -> Verdict:
    """Look at the weights."""
    live = Live()
    fitted(live, *callbacks, module=Spoilt(clip), **settings)
    names = dict(Net().named_parameters())
    before, after, end = ({name: live.seen[at][name] for name in names} for at in (7, 8, -1))
    spoilt = sum(not bool(value.isfinite().all()) for value in end.values())
    if spoilt:
        return judged(False, f"{spoilt} of {len(end)} parameters are not finite at the end")
    return judged(farthest(before, after) == 0.0, "that step did not happen, the rest did")


def watched() -> Verdict:
    """Ask Lightning's option, whose error torch raises from C++."""
    try:
        return asked(detect_anomaly=True)
    except RuntimeError as error:
        raise StoppedError(Verdict("refused", f"RuntimeError: {error}")) from error


def timms(parameters: list[nn.Parameter]) -> None:
    """Clip by timm's AGC, as its ``dispatch_clip_grad(mode="agc")`` does."""
    names = ("unitwise_norm", "adaptive_clip_grad")
    cut("timm", "timm/utils/agc.py", *names, torch=torch)["adaptive_clip_grad"](parameters, clip_factor=0.01)


CASES = [
    Case("`GradientClip`", lambda: asked(lt.GradientClip())),
    Case("`GradientClip(max_norm=ZScore())`", lambda: asked(lt.GradientClip(max_norm=lt.ZScore()))),
    Case('`GradientClip(non_finite="raise")`', lambda: asked(lt.GradientClip(non_finite="raise"))),
    Case("Lightning `gradient_clip_val`", lambda: asked(gradient_clip_val=1.0), "lightning"),
    Case("`AdaptiveGradientClip`", lambda: asked(lt.AdaptiveGradientClip()), known=True),  # its card
    Case("Lightning `detect_anomaly=True`", watched, "lightning"),
    Case(
        "torch `clip_grad_norm_`",
        lambda: asked(clip=lambda all_: clip_grad_norm_(all_, 1.0)),
        "torch",
        known=True,  # of error_if_nonfinite
    ),
    Case(
        "torch `clip_grad_norm_(error_if_nonfinite=True)`",
        lambda: asked(clip=lambda all_: clip_grad_norm_(all_, 1.0, error_if_nonfinite=True)),
        "torch",
    ),
    Case("timm `adaptive_clip_grad`", lambda: asked(clip=timms), "timm"),
]

if __name__ == "__main__":
    answer(QUESTION, CASES)
