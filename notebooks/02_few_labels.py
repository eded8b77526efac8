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
# # I have 300 labelled images
#
# ... and no more of them will be labelled. Some of the labels are wrong, since somebody was in a hurry. What
# is there to gain without new data: mixed samples, softer labels, averaged weights, a network that learnt
# something similar before? And how small may the network be that goes to production?
#
# The images are the digits 5 to 9 that come with scikit-learn, one label in five of them drawn at random; those of
# validation are right. Of the digits 0 to 4 there are plenty.

# %%
import io
import logging
import warnings
from contextlib import redirect_stdout
from copy import deepcopy
from statistics import mean, stdev

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_tricks import (
    Distillation,
    EMAWeights,
    Freeze,
    LabelSmoothing,
    Mixup,
    ProgressiveUnfreeze,
    Teachers,
    WarmupCosine,
)
from lightning_tricks.lifecycle.figures import BLUE, GREY, ORANGE, STYLE
from lightning_tricks.recipes.digits import QUIET, DigitsClassifier, DigitsData
from lightning_tricks.recipes.residual import ResidualNet

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")
torch.set_num_threads(1)  # on networks as small as these, more only wait for one another
plt.rcParams.update(STYLE)

SEEDS = (0, 1, 2)


def labelled(seed):
    """300 images of 5 to 9 to train on, 599 to validate on; with another seed others."""
    return DigitsData(classes=range(5, 10), training=600, batch_size=30, label_noise=0.2, seed=seed)


def train(model, *techniques, seed):
    """Train for 20 epochs and return the accuracy on the labels that are right."""
    trainer = Trainer(max_epochs=20, check_val_every_n_epoch=20, callbacks=list(techniques), **QUIET)
    with redirect_stdout(io.StringIO()):  # ProgressiveUnfreeze's table, each time
        trainer.fit(model, labelled(seed))
    return float(trainer.callback_metrics["val_accuracy"])


def fresh(seed):
    torch.manual_seed(seed)
    return DigitsClassifier(ResidualNet(widths=(8, 16, 32), classes=5), classes=5)


# %% [markdown]
# ## Plain training
#
# The labels are learnt by heart, the wrong ones too: training accuracy says nothing here.

# %%
model = fresh(0)
accuracy = train(model, seed=0)
data = labelled(0)
data.setup("fit")
images, labels = data.train_set.tensors
found = model.eval()(images).argmax(dim=1)
print(f"accuracy on the {len(labels)} labels that it has seen {(found == labels).float().mean():.1%}")
print(f"accuracy on {len(data.val_set)} right ones {accuracy:.1%}")

# %% [markdown]
# ## One technique at a time

# %%
alone = {
    "plain": lambda: [],
    "WarmupCosine": lambda: [WarmupCosine()],
    "LabelSmoothing": lambda: [LabelSmoothing(smoothing=0.3)],
    "Mixup": lambda: [Mixup(classes=5, alpha=1.0)],
    "EMAWeights": lambda: [EMAWeights(decay=0.98)],
    "all four": lambda: [
        WarmupCosine(),
        LabelSmoothing(smoothing=0.3),
        Mixup(classes=5, alpha=1.0),
        EMAWeights(decay=0.98),
    ],
}
scores = {
    name: [train(fresh(seed), *techniques(), seed=seed) for seed in SEEDS]
    for name, techniques in alone.items()
}


def table(scores):
    for name, values in scores.items():
        print(f"{name:>22}  {mean(values):.1%} ± {stdev(values):.1%}")


table(scores)

# %% [markdown]
# ## A network that has learnt something similar
#
# The same network learns the digits 0 to 4 once, from 889 images with right labels. Then it gets a new head.
# `Freeze` leaves all but the head as it is; `ProgressiveUnfreeze` opens part after part, from the head down, each
# with a lower rate.

# %%
torch.manual_seed(0)
pretrained = DigitsClassifier(ResidualNet(widths=(8, 16, 32), classes=5), classes=5)
others = DigitsData(classes=range(5), training=1787, batch_size=30)
Trainer(max_epochs=6, check_val_every_n_epoch=6, callbacks=[WarmupCosine()], **QUIET).fit(pretrained, others)


def transferred(seed):
    torch.manual_seed(seed)
    model = deepcopy(pretrained)
    model.network.head = nn.Linear(32, 5)
    return model


STAGES = ["network.head", "network.groups.2", "network.groups.1", "network.groups.0", "network.stem"]
starts = {
    "pretrained": lambda: [WarmupCosine()],
    "... Freeze": lambda: [WarmupCosine(), Freeze(params=["network.stem", "network.groups"])],
    "... ProgressiveUnfreeze": lambda: [WarmupCosine(), ProgressiveUnfreeze(stages=STAGES, at="10%")],
    "... all of it": lambda: [*alone["all four"](), ProgressiveUnfreeze(stages=STAGES, at="10%")],
}
tuned = {
    name: [train(transferred(seed), *techniques(), seed=seed) for seed in SEEDS]
    for name, techniques in starts.items()
}
table(tuned)
