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
# # Which weights do I evaluate and keep?
#
# At a constant rate validation goes up and down from epoch to epoch, and the last weights are a matter of
# luck. Take the best epoch? An average of the last ones? How long should it be? And what stands in the
# checkpoint then?
#
# A residual network learns 1,000 digits, three labels in ten of them drawn at random; those of validation are
# right.

# %%
import io
import logging
import tempfile
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from statistics import mean, stdev

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim.swa_utils import update_bn

from lightning_tricks import (
    LAWA,
    EMAWeights,
    ExactResume,
    PostHocEMA,
    SWAWeights,
    WarmupCosine,
    average_state,
    evaluate_lengths,
    live_state,
)
from lightning_tricks.lifecycle.figures import BLUE, GREEN, GREY, ORANGE, RED, STYLE
from lightning_tricks.recipes.digits import QUIET, DigitsClassifier, DigitsData
from lightning_tricks.recipes.residual import ResidualNet

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")
torch.set_num_threads(1)  # on networks as small as these, more only wait for one another
plt.rcParams.update(STYLE)
EPOCHS, SEEDS = 12, (0, 1, 2)
root = Path(tempfile.mkdtemp())


class Validations(Callback):
    """Keeps what each validation logged."""

    def __init__(self):
        self.epochs = []

    def on_train_epoch_end(self, trainer, module):
        self.epochs.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def train(*techniques, seed):
    torch.manual_seed(seed)
    model, validations = DigitsClassifier(ResidualNet(widths=(8, 16, 32))), Validations()
    settings = {**QUIET, "default_root_dir": root / str(seed)}
    trainer = Trainer(max_epochs=EPOCHS, callbacks=[*techniques, validations], **settings)
    with redirect_stdout(io.StringIO()):  # what techniques print of each run
        trainer.fit(model, DigitsData(label_noise=0.3, seed=seed))
    return model, validations.epochs


# %% [markdown]
# ## One run, five sets of weights
#
# With `evaluate=False, validate=True` an average is kept apart and validated beside the live weights. Nothing
# of the training changes, so that all curves are of one and the same run. `PostHocEMA` only writes files, for
# later.


# %%
def averages():
    apart = {"evaluate": False, "validate": True}
    return [
        EMAWeights(decay=0.9, label="short", **apart),
        EMAWeights(decay=0.98, label="middle", **apart),
        SWAWeights(start="50%", every="1 epoch", label="half", **apart),
        LAWA(k=5, every="1 epoch", label="five", **apart),
        PostHocEMA(snapshot_every="1 epoch"),
    ]


runs = [train(*averages(), seed=seed) for seed in SEEDS]
names = {
    "live weights": "val_accuracy",
    "EMA, decay 0.9": "short/ema_weights/val_accuracy",
    "EMA, decay 0.98": "middle/ema_weights/val_accuracy",
    "SWA, second half": "half/swa_weights/val_accuracy",
    "LAWA, five epochs": "five/lawa/val_accuracy",
}
_, epochs = runs[0]
figure, panel = plt.subplots(figsize=(8, 4), layout="constrained")
for (label, name), color in zip(names.items(), (GREY, ORANGE, BLUE, GREEN, RED), strict=True):
    curve = [(place + 1, epoch[name]) for place, epoch in enumerate(epochs) if name in epoch]
    panel.plot(*zip(*curve, strict=True), color=color, marker="o", markersize=3, label=label)
panel.set(
    title="Accuracy of the weights of one run",
    xlabel="epoch",
    xticks=range(0, EPOCHS + 1, 2),
    ylim=(0.8, 1.0),
)
panel.legend(loc="lower right")
plt.show()

# %% [markdown]
# Until step 80, in the sixth epoch, both EMAs are the same line: their decay grows with the steps, and only
# then has it reached 0.9.
#
# ## Three seeds, and a rate that falls
#
# The same at the end of the run, for three seeds; beside them the best epoch of the live weights, which is a
# little flattered, as these numbers chose it. And runs whose rate falls to 0, with an average and without.

# %%
falling = [
    train(WarmupCosine(), EMAWeights(decay=0.98, label="middle", evaluate=False, validate=True), seed=seed)
    for seed in SEEDS
]
scores = {label: [epochs[-1][name] for _, epochs in runs] for label, name in names.items()}
scores["live, best epoch"] = [max(epoch["val_accuracy"] for epoch in epochs) for _, epochs in runs]
for label in ("live weights", "EMA, decay 0.98"):
    scores[f"falling rate: {label}"] = [epochs[-1][names[label]] for _, epochs in falling]
for label, values in scores.items():
    each = "  ".join(f"{value:.1%}" for value in values)
    print(f"{label:>29}  {mean(values):.1%} ± {stdev(values):.1%}   ({each})")

# %% [markdown]
# Any of these averages is better than the last weights of the same run, with each seed: by about three points
# in the mean, and none has to be chosen. Longer ones are better in the mean. The best epoch is no better than
# the longer ones, although it was chosen by the very numbers that are reported. A run whose rate has fallen
# leaves an average little to do, and the mean of the second half of a run at a constant rate is as good.
#
# ## How long should it be? Asked after the run
#
# `PostHocEMA` keeps snapshots of two averages, from which one of any length can be put together later; the
# length is a share of the run. BatchNorm statistics are estimated anew for each, by torch's own `update_bn`.

# %%
model, _ = runs[0]
data = DigitsData(label_noise=0.3)
data.setup("fit")
images, labels = data.val_set.tensors


@torch.no_grad()
def accuracy(weights):
    model.load_state_dict(weights)
    update_bn(data.train_dataloader(), model)
    return (model.eval()(images).argmax(dim=1) == labels).float().mean().item()


found = evaluate_lengths(root / "0" / "checkpoints", accuracy, sigma_rels=(0.03, 0.05, 0.08, 0.12, 0.18))
for length in found:
    print(f"{length.sigma_rel:.0%} of the run: {length.metrics['accuracy']:.1%}")

# %% [markdown]
# ## What is in the checkpoint, and what happens on resume?
#
# The average stands under `state_dict`, where `load_from_checkpoint` and `trainer.test` look, and the live
# weights beside it. A run that is broken off goes on from the live ones, with the average as it was.
# `ExactResume` adds random states and the order of the data, so that the resumed run is the uninterrupted one
# to the bit.


# %%
def fit(epochs, name, resume=None):
    torch.manual_seed(0)
    model = DigitsClassifier(ResidualNet(widths=(8, 16, 32)))
    files = ModelCheckpoint(root, filename=name)
    settings = {**QUIET, "enable_checkpointing": True, "default_root_dir": root}
    trainer = Trainer(max_epochs=epochs, callbacks=[EMAWeights(decay=0.98), ExactResume(), files], **settings)
    trainer.fit(model, DigitsData(label_noise=0.3), ckpt_path=resume)
    return files.best_model_path


def same(weights, others):
    return all(torch.equal(weights[name], others[name]) for name in weights)


whole = fit(2, "whole")
resumed = fit(2, "resumed", resume=fit(1, "half"))

print("state_dict is the average:", same(torch.load(whole)["state_dict"], average_state(whole)))
print("... and not the live set: ", not same(live_state(whole), average_state(whole)))
print("resumed, live weights equal to the bit:", same(live_state(whole), live_state(resumed)))
print("resumed, average equal to the bit:     ", same(average_state(whole), average_state(resumed)))

# %% [markdown]
# ## What to take away
#
# - At a constant rate keep an average. `SWAWeights` over the second half does as much as a schedule,
#   `EMAWeights` with a long memory nearly, and both leave the end of the run open.
# - With a rate that falls to 0 there is little left for an average to do. It does no harm.
# - The best length differs from task to task: `PostHocEMA` answers it after the run. Here it is the longest
#   that was asked, 18 % of the run.
# - All else stays: validation, `ModelCheckpoint` and `load_from_checkpoint` see the average, training the
#   live weights, and a resumed run both.
