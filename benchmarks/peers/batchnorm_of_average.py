"""BatchNorm statistics for averaged weights, from batches whose samples resemble one another.

As frames of a video do, or samples sorted by class. Judged by mean and variance of the layer's input over all
training samples, with the weights that the run leaves, in double precision: the statistics must be within 1
%.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch.callbacks as pl
import torch
from lightning.pytorch import Callback
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.data import DataLoader, TensorDataset

import lightning_tricks as lt
from benchmarks.peers.cases import Case, Verdict, answer, judged
from benchmarks.peers.small import Net
from tests.toys import trainer

QUESTION = "Are an average's BatchNorm statistics those of the training data, if batches differ?"


def data() -> TensorDataset:
    """Return 70 samples, each eight of which lie around a point of their own."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(9, 4, generator=generator).repeat_interleave(8, 0)[:70]
    inputs = 2 * centres + torch.randn(70, 4, generator=generator)
    return TensorDataset(inputs, torch.randint(3, (70,), generator=generator))


def loader() -> DataLoader[Any]:
    """Return batches of eight, and one of six."""
    return DataLoader(data(), batch_size=8)


def verdict(backbone: torch.nn.Module) -> Verdict:
    """Compare the statistics with those by hand."""
    layer, norm = backbone[0], backbone[1]
    with torch.no_grad():
        found = layer(data().tensors[0]).double()
    variance, mean = torch.var_mean(found, 0, correction=0)
    share = float((norm.running_var / variance).mean())
    off = float(((norm.running_mean - mean) / variance.sqrt()).abs().max())
    told = f"variance {share:.3f} of that by hand, means off by up to {off:.3f} standard deviations"
    worst = float((norm.running_var / variance - 1).abs().max())
    return judged(worst < 0.02 and off < 0.01, told)


def asked(*callbacks: Callback) -> Verdict:
    """Look at what a run leaves."""
    module = Net()
    trainer(*callbacks).fit(module, loader())
    return verdict(module.backbone)


def torchs() -> Verdict:
    """https://docs.pytorch.org/docs/stable/optim.html#update-bn: after training."""
    module = Net()
    average = AveragedModel(module.backbone)
    trainer(max_epochs=1).fit(module, loader())
    average.update_parameters(module.backbone)
    update_bn(loader(), average)
    return verdict(average.module)


CASES = [
    Case("`SWAWeights`", lambda: asked(lt.SWAWeights(start=5, every=2))),
    Case(
        "`EMAWeights` and `PreciseBatchNorm`", lambda: asked(lt.EMAWeights(decay=0.5), lt.PreciseBatchNorm())
    ),
    Case(
        "Lightning `StochasticWeightAveraging`",
        lambda: asked(pl.StochasticWeightAveraging(0.05, swa_epoch_start=1, annealing_epochs=1)),
        "lightning",
    ),
    Case("torch `update_bn`", torchs, "torch"),
]

if __name__ == "__main__":
    answer(QUESTION, CASES)
