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
# # My loss explodes
#
# It falls for a few steps, jumps, and is NaN from then on. Which layer did it, at which step, and is there
# another way out than a lower learning rate? A recurrent network without gates shows the trouble better than
# most: its gradient is multiplied by the same matrix at each of 32 characters. It reads the text of Python's
# own help, so nothing is downloaded.

# %%
import logging
import os
import warnings

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from lightning_tricks import Diagnosis, GradientClip, GradientHealth, Percentile, WarmupCosine
from lightning_tricks.lifecycle.figures import STYLE
from lightning_tricks.recipes.characters import ALPHABET, CharacterData, CharacterModel
from lightning_tricks.recipes.digits import QUIET, DigitsClassifier, DigitsData

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")  # what the techniques warn of is printed below
torch.set_num_threads(1)  # on networks as small as these, more only wait for one another
plt.rcParams.update(STYLE)
STEPS = 100
os.environ.setdefault("PL_TRAINER_LIMIT_TRAIN_BATCHES", str(STEPS))  # what each Trainer takes here


class Recurrent(nn.Module):
    """Characters to the logits of the next one, through a recurrent layer with ReLU."""

    def __init__(self, width=64):
        super().__init__()
        self.embedding = nn.Embedding(len(ALPHABET), width)
        self.recurrent = nn.RNN(width, width, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(width, len(ALPHABET))

    def forward(self, characters):
        hidden, _ = self.recurrent(self.embedding(characters))
        return self.head(hidden)


class Reader(CharacterModel):
    """``CharacterModel`` has the loss and the metrics; we train by SGD."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class Curves(Callback):
    """Keeps each metric of each step."""

    def __init__(self):
        self.steps = {}

    def on_train_batch_end(self, trainer, module, *_):
        for name, value in trainer.callback_metrics.items():
            self.steps.setdefault(name, []).append(float(value))


def train(lr, *techniques, seed=0):
    torch.manual_seed(seed)
    curves = Curves()
    trainer = Trainer(max_epochs=1, callbacks=[*techniques, curves], log_every_n_steps=1, **QUIET)
    trainer.fit(Reader(Recurrent(), lr=lr), CharacterData(length=32, seed=seed))
    return float(trainer.callback_metrics["val_loss"]), curves.steps


# %% [markdown]
# ## What happened, and where
#
# `GradientHealth` measures the gradients of each layer, `Diagnosis` watches the whole run. Neither changes
# anything, so that the run is the one that exploded.

# %%
health, diagnosis = GradientHealth(every=1), Diagnosis(every=5)
loss, plain = train(1.5, health, diagnosis)

print("validation loss:", loss)
for kind, finding in diagnosis.findings.items():
    print(f"step {finding.step}, {kind}: {finding.evidence}")
    if finding.proposal:
        print(f"  -> {finding.proposal}")

# %%
_, calm = train(1.5, GradientHealth(every=1), GradientClip(max_norm=0.5), WarmupCosine(warmup="10%"))

figure, panels = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
panels[0].plot(plain["train_loss"], label="plain")
panels[0].plot(calm["train_loss"], label="clipped, warmed up")
panels[0].set(title="Training loss", xlabel="step", ylim=(1.5, 8))
panels[0].legend()
for panel, run, title in ((panels[1], plain, "plain"), (panels[2], calm, "clipped, warmed up")):
    for layer in ("embedding", "recurrent", "head"):
        panel.plot(run[f"gradient_health/gradient_norm/network.{layer}"], label=layer, linewidth=1)
    panel.set(title=f"Gradient norm, {title}", xlabel="step", xlim=(-5, STEPS + 5))
    panel.set(yscale="log", ylim=(1e-2, 1e4))
panels[1].legend()
plt.show()

# %% [markdown]
# Within ten steps the gradients of all layers grow by orders of magnitude, and the weights are gone. On the
# right, at the same rate, one peak is left, during warm-up. `GradientHealth` sees gradients as the backward
# pass made them, before any clipping: the explosion was not hidden, it did not happen.
#
# ## Which remedy, at which rate?
#
# The usual advice is a lower rate. So each remedy is tried at three rates, with two seeds.

# %%
remedies = {
    "plain": lambda: [],
    "GradientClip": lambda: [GradientClip(max_norm=0.5)],
    "WarmupCosine": lambda: [WarmupCosine(warmup="10%")],
    "both": lambda: [GradientClip(max_norm=0.5), WarmupCosine(warmup="10%")],
}
rates, seeds = (0.3, 0.7, 1.5), (0, 1)
losses = {
    name: [[train(rate, *remedy(), seed=seed)[0] for seed in seeds] for rate in rates]
    for name, remedy in remedies.items()
}

print("validation loss of two seeds")
print(f"{'rate':>14}" + "".join(f"{rate:>14}" for rate in rates))
for name, rows in losses.items():
    print(f"{name:>14}" + "".join(f"{first:>9.2f} {second:.2f}" for first, second in rows))

# %%
figure, panel = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
for (name, rows), marker in zip(losses.items(), "osD^", strict=True):
    means = torch.tensor(rows).mean(dim=1).nan_to_num(nan=2.5).clamp(max=2.5)
    panel.plot(rates, means, marker=marker, label=name)
panel.set(xlabel="learning rate", xscale="log")
panel.set_title(f"Validation loss after {STEPS} steps, mean of two seeds")
panel.set_xticks(rates, [str(rate) for rate in rates])
panel.set_yticks([2.0, 2.1, 2.2, 2.3, 2.4, 2.5], ["2.0", "2.1", "2.2", "2.3", "2.4", "lost"])
panel.minorticks_off()
panel.legend()
plt.show()

# %% [markdown]
# The lowest loss is hardly lower with clipping than without, if the rate is right. What the remedies bring is
# room: plain SGD is good at the lowest of these rates only, clipped up to 0.7, and with both up to 1.5.
# Warm-up and decay alone cost something at a low rate, where a short run needs every step. ("Lost" is NaN or
# a loss of 2.5 and more.)
#
# Clipping wants a threshold. `GradientHealth` has just shown what norms are usual here (0.2 to 0.5), and
# `outcome()` tells how often it clipped; nearly always or never is a wrong threshold, which `Diagnosis` says.
# A policy finds one by itself, such as the median of the norms so far:

# %%
for limit in (0.05, 0.5, 50.0, Percentile(50)):
    clip = GradientClip(max_norm=limit)
    loss, _ = train(1.5, clip, WarmupCosine(warmup="10%"))
    print(f"{limit!s:>22}: loss {loss:.2f}, clipped {clip.outcome()['clipped']} of {STEPS} steps")

# %% [markdown]
# ## Or was it one bad batch?
#
# A loss may be NaN without any explosion. In these 1,000 images of digits one pixel of one image is NaN, as
# after a division by zero somewhere in preprocessing.


# %%
class OneBadPixel(DigitsData):
    def setup(self, stage):
        super().setup(stage)
        images, _ = self.train_set.tensors
        images[123, 0, 4, 4] = torch.nan


def train_digits(*techniques):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    trainer = Trainer(max_epochs=6, callbacks=list(techniques), log_every_n_steps=1, **QUIET)
    trainer.fit(DigitsClassifier(network), OneBadPixel())
    return float(trainer.callback_metrics["val_accuracy"])


print(f"plain: accuracy {train_digits():.2f}")
skip = GradientClip(max_norm=1.0)
print(f"GradientClip: accuracy {train_digits(skip):.2f}, {skip.outcome()}")
try:
    train_digits(GradientClip(max_norm=1.0, non_finite="raise"))
except Exception as error:
    print(f"{type(error).__name__}: {error}")

# %% [markdown]
# By default a step whose gradients are not finite does not happen: weights, momentum and averages stay as
# they are, and it is counted. That saves the run, not the data: `skipped` above 0 is a reason to look at
# them, and `non_finite="raise"` stops at the first such step and names the parameters. BatchNorm would not be
# saved: its running statistics take NaN in the forward pass, before there is a gradient.
#
# ## What to take away
#
# - `GradientHealth` and `Diagnosis` first: they cost little, change nothing, and name layer, step and cause.
# - Against explosions clip and warm up; then search the rate anew, for the best one may be higher.
# - A clipped run is not a better one by itself. At the best plain rate it changed little here.
# - One batch that is not finite needs `GradientClip`'s default, and somebody who looks for it.
