"""Buffers of whole numbers beside averaged weights: a table of indices that never changes, and a counter.

Judged by the table, which must stay as it is (Swin's ``relative_position_index`` is one), and by the counter
of BatchNorm, which must be that of the live network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn

import lightning_tricks as lt
from benchmarks.peers.beside import EMAPytorchs, Kind, Timms
from benchmarks.peers.cases import Case, Verdict, answer, judged
from benchmarks.peers.parts import cut
from benchmarks.peers.small import Net, fitted

QUESTION = "Do an average's buffers of whole numbers stay right?"
DECAY, STEPS = 0.9999, 10


class Indexed(Net):
    """With a table of indices, which nothing changes."""

    def __init__(self) -> None:
        """Make it."""
        super().__init__()
        self.backbone.register_buffer("index", torch.arange(5000))


def verdict(table: torch.Tensor, counted: torch.Tensor) -> Verdict:
    """Judge the average's buffers after ``STEPS`` steps."""
    wrong = int((table != torch.arange(5000)).sum())
    seen = f"{wrong} of 5,000 constant indices changed, counter {int(counted)} instead of {STEPS}"
    return judged(not wrong and int(counted) == STEPS, seen)


def asked(callback: Callback) -> Verdict:
    """Let a callback leave the average in the module."""
    module = fitted(callback, module=Indexed(), max_epochs=1, batches=STEPS)
    return verdict(module.backbone.index, module.backbone[1].num_batches_tracked)


def network() -> nn.Module:
    """Return one with BatchNorm and the table."""
    return Indexed().backbone


def beside(kind: Callable[..., Kind], **options: Any) -> Verdict:
    """Update an average after each of so many forward passes."""
    module = network()
    average = kind(module, DECAY, **options)
    for step in range(1, STEPS + 1):
        module(torch.randn(8, 4))
        average.update(module, step)
    values = average.values()
    return verdict(values["index"], values["1.num_batches_tracked"])


class Composers(Kind):
    """https://docs.mosaicml.com/projects/composer/en/stable/method_cards/ema.html, its function."""

    def begin(self, module: nn.Module, decay: float, **options: Any) -> nn.Module:
        import contextlib
        import itertools

        own = cut(
            "mosaicml",
            "composer/algorithms/ema/ema.py",
            "compute_ema",
            "EMAParameters",
            torch=torch,
            itertools=itertools,
            get_model_context_manager=lambda _: contextlib.nullcontext(),
        )
        self.compute, self.decay = own["compute_ema"], decay
        return network()

    def update(self, module: nn.Module, step: int) -> None:
        self.compute(module, self.average, smoothing=self.decay)

    def values(self) -> dict[str, torch.Tensor]:
        return dict(self.average.state_dict())


CASES = [
    Case("`EMAWeights`", lambda: asked(lt.EMAWeights(decay=DECAY, decay_warmup=False))),
    Case(
        '`EMAWeights(buffers="average")`',
        lambda: asked(lt.EMAWeights(decay=DECAY, decay_warmup=False, buffers="average")),
    ),
    Case("Lightning `EMAWeightAveraging`", lambda: asked(EMAWeightAveraging(decay=DECAY)), "lightning"),
    Case("torch `AveragedModel`", lambda: beside(Kind), "torch"),
    Case("torch `AveragedModel(use_buffers=True)`", lambda: beside(Kind, use_buffers=True), "torch"),
    Case("timm `ModelEmaV3`", lambda: beside(Timms), "timm"),
    Case("ema-pytorch `EMA`", lambda: beside(EMAPytorchs), "ema-pytorch"),
    Case("Composer `compute_ema`", lambda: beside(Composers), "mosaicml"),
]

if __name__ == "__main__":
    answer(QUESTION, CASES)
