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
# # Does it help?
#
# A paper says so, and a colleague: add this, smooth that. On other data, with another network. What does each
# technique bring in *my* training, does it still bring it beside the others, what does it cost, and which
# settings are worth trying?
#
# The training: digits that come with scikit-learn, a fifth of the labels to train on drawn at random, a small
# residual network.

# %%
import logging
import os
import tempfile
import warnings
from pathlib import Path

import torch
from IPython.display import Image, Markdown
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from lightning_tricks import (
    Ablation,
    EMAWeights,
    LabelSmoothing,
    RunReport,
    Search,
    WarmupCosine,
)
from lightning_tricks.recipes.digits import DigitsClassifier, DigitsData
from lightning_tricks.recipes.residual import ResidualNet
from lightning_tricks.study.report import draw_effects, markdown
from lightning_tricks.study.search_report import draw_search, search_markdown

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")
torch.set_num_threads(1)  # on networks as small as these, more only wait for one another
os.chdir(tempfile.mkdtemp())  # files go there


def build(seed, lr=0.05):
    """Return what one trial trains: module, data, and settings of its Trainer."""
    module = DigitsClassifier(ResidualNet(widths=(8, 16)), lr=lr)
    data = DigitsData(label_noise=0.2, seed=seed)
    return module, data, {"max_epochs": 7, "check_val_every_n_epoch": 7, "accelerator": "cpu", "devices": 1}


# %% [markdown]
# ## With, without, alone
#
# `Ablation` trains with none of the techniques, with all, with all but one, and with each alone. Trials of
# one seed begin with the same weights and see the same data in the same order, so that the differences within
# seeds are those of the techniques. Bold is what the 95 % interval tells from 0.

# %%
techniques = [WarmupCosine(), LabelSmoothing(smoothing=0.3), EMAWeights(decay=0.98)]
settings = {"metric": "val_accuracy", "mode": "max"}
study = Ablation(build, techniques, seeds=5, storage="ablation.journal", **settings)
effects = study.run()
Markdown(markdown(effects))

# %%
draw_effects(effects, "effects.png")
Image("effects.png")

# %% [markdown]
# Alone each seems to help, and the interval of two leaves out 0. Together they are hardly better than
# nothing: all three slow down what is learnt in a run of seven epochs, and added to two of them the third
# does harm or nothing. What papers report of one technique at a time is no reason to add them up. A longer
# run is another question, and another study: with eight epochs, tried as well, each alone still gained in the
# mean, but no interval left out 0.
#
# ## Which settings?
#
# `Search` looks for better settings of the training and of techniques, here for the learning rate and for
# which of them to use. Its first trial changes nothing; one that does worse than half of the others is broken
# off.

# %%
space = {
    "lr": {"low": 0.005, "high": 0.5, "log": True},
    "techniques": {"LabelSmoothing": {"optional": True}, "EMAWeights": {"optional": True}},
}
found = Search(build, space, trials=10, storage="search.journal", **settings).run()
Markdown(search_markdown(found))

# %%
draw_search(found, "search.png")
Image("search.png")

# %% [markdown]
# Most depends on the learning rate, which no list of techniques would have told; but the best trials all
# have the average on, too, and shares of ten trials are rough. The best of ten was chosen by the very
# numbers that are shown, on one seed: what it gained is flattered. Train with its settings and without, on
# other seeds, before you believe it; that is an `Ablation` again. For a LightningCLI project both are
# commands, `lightning-tricks ablate` and `search`, which several processes may share.
#
# ## And what does it cost?
#
# `RunReport` says what is active, what each technique did, and how long its hooks took; times are of this
# machine.

# %%
module, data, trainer_settings = build(0)
trainer = Trainer(
    **trainer_settings,
    callbacks=[*techniques, RunReport()],
    logger=CSVLogger(".", name="run"),
    log_every_n_steps=5,
    enable_progress_bar=False,
    enable_model_summary=False,
    enable_checkpointing=False,
)
trainer.fit(module, data)

# %%
Image(next(Path(".").rglob("RunReport.png")))

# %% [markdown]
# ## What to take away
#
# - Measure on your own training, with several seeds, each technique alone *and* beside the others.
# - An interval that holds 0 is an answer, too: this technique is not what the result hangs on.
# - Cost is part of the answer; here all three together take less of a step than the scatter between runs.
# - What a search found is a proposal. Test it on seeds that it has not seen.
