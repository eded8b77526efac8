"""What opens, and a schedule of the rate beside it: a head learns, then the backbone.

Judged by which weights differ after the last epoch from those before it: all must, since all have gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

import lightning_tricks as lt
from benchmarks.peers.cases import Case, Verdict, answer, judged
from benchmarks.peers.openings import lightnings, ours, scheduled
from benchmarks.peers.small import Live, Net, fitted, sgd

QUESTION = "With a schedule of the rate, does all learn that an opening opens?"


def with_schedule(kind: Callable[..., Any], module: nn.Module) -> Any:
    """Return an optimizer and a schedule, as ``configure_optimizers`` does."""
    optimizer = sgd(module)
    return [optimizer], [kind(optimizer)]


def asked(callbacks: list[Callback], schedule: Callable[..., Any] | None = None) -> Verdict:
    """Compare the last epoch's weights."""
    live = Live()
    optimizers = sgd if schedule is None else partial(with_schedule, schedule)
    module = Net(optimizers)
    # A wide layer's bias before a norm has no gradient, but its rounding.
    fitted(live, *callbacks, module=module, max_epochs=4)
    before, after = live.seen[-6], live.seen[-1]
    names = [name for name, _ in module.named_parameters() if name != "backbone.0.bias"]
    still = [name for name in names if torch.equal(before[name], after[name])]
    told = "all of them" if not still else f"{', '.join(still)} never moved"
    return judged(not still, told)


def falling(epoch: int) -> float:
    """Return a share of the base rate."""
    return 0.9**epoch


lambdas = partial(LambdaLR, lr_lambda=falling)
cosine = partial(CosineAnnealingLR, T_max=5)
CASES = [
    Case("`ProgressiveUnfreeze` and `WarmupCosine`", lambda: asked([*ours(), lt.WarmupCosine(warmup=2)])),
    Case("Lightning `BackboneFinetuning` and `LambdaLR`", lambda: asked(lightnings(), lambdas), "lightning"),
    Case(
        "Lightning `BackboneFinetuning` and `CosineAnnealingLR`",
        lambda: asked(lightnings(), cosine),
        "lightning",
    ),
    Case("finetuning-scheduler and `LambdaLR`", lambda: asked(scheduled(), lambdas), "finetuning-scheduler"),
]

if __name__ == "__main__":
    answer(QUESTION, CASES)
