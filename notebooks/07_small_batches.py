# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Small batches, odd initial weights, and how sure is it?
#
# Only two images fit into memory at a time, and a network with BatchNorm that was good at 64 is not any more. A deep
# one without normalisation does not learn at all. And a third, which is good, should say when it does not know.
#
# The images are the digits that come with scikit-learn.

# %%
import io
import logging
import warnings
from contextlib import redirect_stdout
from statistics import mean, stdev

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from lightning_tricks import (
    LSUV,
    MonteCarloDropout,
    PreciseBatchNorm,
    ReplaceNorm,
    WarmupCosine,
    WeightInit,
    ZeroInitResidual,
)
from lightning_tricks.lifecycle.figures import BLUE, GREY, ORANGE, STYLE
from lightning_tricks.recipes.digits import QUIET, DigitsClassifier, DigitsData
from lightning_tricks.recipes.residual import ResidualNet

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")
torch.set_num_threads(1)  # on networks as small as these, more only wait for one another
plt.rcParams.update(STYLE)
SEEDS = (0, 1, 2)


def train(model, *techniques, steps=300, seed=0, **data):
    settings = {**QUIET, "max_epochs": 1, "limit_train_batches": steps}
    trainer = Trainer(callbacks=list(techniques), **settings)
    with redirect_stdout(io.StringIO()):  # what techniques print of each run
        trainer.fit(model, DigitsData(seed=seed, **data))
    return float(trainer.callback_metrics["val_accuracy"])


def residual(seed, lr):
    torch.manual_seed(seed)
    return DigitsClassifier(ResidualNet(widths=(8, 16), dropout=0.0), lr=lr)

for bs, lr in ((2, 0.002), (2,0.005), (2, 0.01), (4,0.01)):
    for name, tech in {"plain": lambda: [], "Precise": lambda: [PreciseBatchNorm()], "group": lambda: [ReplaceNorm(to="group", groups=4)], "layer": lambda: [ReplaceNorm(to="layer")]}.items():
        print(bs, lr, name, [round(train(residual(s, lr), *tech(), seed=s, batch_size=bs, steps=400),3) for s in (0,1)], flush=True)
