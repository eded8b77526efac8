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
# # A tour: five techniques on one small network
#
# A residual network learns eight of the ten digits that come with scikit-learn, with warm-up and cosine
# annealing, clipping and an average of its weights. Then it gets a new head and is fine-tuned on all ten,
# stage by stage, and its last weights are fused. A share of the training labels is wrong, as labels often
# are; those of validation are right. Nothing is downloaded, and it takes half a minute on one core.

# %%
import logging
import os
import tempfile
import warnings
from typing import Any

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import Callback, Trainer

from lightning_tricks import (
    EMAWeights,
    GradientClip,
    LastEpochs,
    ProgressiveUnfreeze,
    WarmupCosine,
    WeightFusion,
)
from lightning_tricks.lifecycle.figures import BLACK, BLUE, COLOURS, GREEN, GREY, ORANGE, STYLE
from lightning_tricks.recipes.digits import DigitsClassifier, DigitsData
from lightning_tricks.recipes.residual import ResidualNet

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", "The .* does not have many workers")
warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.` is deprecated")
torch.set_num_threads(1)  # on a network as small as this, more only wait for one another
plt.rcParams.update(STYLE)
os.chdir(tempfile.mkdtemp())  # files go there
EPOCHS = 12


# %% [markdown]
# A callback of our own notes down what we want to plot. The techniques log the same numbers to whatever
# logger the Trainer has; here there is none.


# %%
class Notes(Callback):
    """Rates, gradient norms and trainable parameters per step; accuracy of both sets of weights per epoch."""

    def __init__(self) -> None:
        """Start empty."""
        self.rates: list[list[float]] = []
        self.norms: list[float] = []
        self.trainable: list[int] = []
        self.live: list[float] = []
        self.validated: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])
        self.norms.append(float(trainer.callback_metrics["gradient_clip/norm"]))
        self.trainable.append(sum(p.numel() for p in module.parameters() if p.requires_grad))

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        self.validated.append(float(trainer.callback_metrics["val_accuracy"]))
        self.live.append(accuracy(module))


@torch.no_grad()
def accuracy(module: DigitsClassifier) -> float:
    """Return the validation accuracy of the weights that the module holds now."""
    images, labels = data.val_set.tensors
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    right = (module(images).argmax(dim=1) == labels).float().mean().item()
    for part, mode in modes:
        part.training = mode
    return right


def train(module: DigitsClassifier, *techniques: Callback) -> Notes:
    """Train and return the notes."""
    notes = Notes()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        callbacks=[*techniques, notes],
        default_root_dir=".",
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    return notes


# %% [markdown]
# ## Eight digits, from scratch
#
# `WarmupCosine` needs no change to `configure_optimizers`, `EMAWeights` is evaluated in place of the trained
# weights, and `GradientClip` acts once per optimizer step on true gradients.

# %%
torch.manual_seed(0)
data = DigitsData(classes=tuple(range(8)), training=800, batch_size=40, label_noise=0.3)
network = ResidualNet(widths=(8, 16, 32), classes=8)
clip, average = GradientClip(max_norm=2.0), EMAWeights()
pretrained = DigitsClassifier(network, classes=8)
first = train(pretrained, clip, WarmupCosine(warmup="10%", final=0.1), average)

print("what they did:", clip.outcome(), average.outcome())
print(f"after fit the module holds the average: {accuracy(pretrained):.1%}")
with average.live_weights():
    print(f"and the trained weights within live_weights(): {accuracy(pretrained):.1%}")

# %% [markdown]
# ## All ten, from the head down
#
# All parameters are in the optimizer from the start; only `requires_grad` moves. Each stage has a rate of its
# own, 1 / 2.6 of the one opened before it, and `WarmupCosine` multiplies all of them alike.

# %%
torch.manual_seed(0)
data = DigitsData(training=800, batch_size=40, label_noise=0.3)
new = ResidualNet(widths=(8, 16, 32), classes=10)
learned = {k: v for k, v in network.state_dict().items() if not k.startswith("head.")}
new.load_state_dict(learned, strict=False)
finetuned = DigitsClassifier(new)

stages = ["network.head", "network.groups.2", "network.groups.1", "network.groups.0", "network.stem"]
average = EMAWeights()
fusion = WeightFusion(collect=LastEpochs(4), monitor="val_loss", mode="min")
second = train(
    finetuned,
    GradientClip(max_norm=2.0),
    WarmupCosine(warmup="10%", final=0.1),
    average,
    ProgressiveUnfreeze(stages=stages, at="10%"),
    fusion,
)
print("what fusion did:", fusion.outcome())
print(f"on all ten digits: average {second.validated[-1]:.1%}, what is left {accuracy(finetuned):.1%}")

# %% [markdown]
# `WeightFusion` collected the last four epochs, fused them, with statistics of BatchNorm as they are fused or
# estimated anew, whichever measured better, and kept the result only if it was not worse by the metric than
# what the module would have held without it.

# %% [markdown]
# ## What happened

# %%
figure, panels = plt.subplots(2, 2, figsize=(10, 6), layout="constrained")
rates, norms, trainable, accuracies = panels.flat
offset = len(first.norms)
steps = range(offset, offset + len(second.norms))

rates.plot([group[0] for group in first.rates], color=BLACK, label="8 digits: all layers")
for index, (name, color) in enumerate(zip(stages, COLOURS[:5], strict=True)):
    values = [group[index] for group in second.rates]
    rates.plot(steps, values, color=color, label=name.removeprefix("network."))
rates.set(title="Learning rate of each group", xlabel="optimizer step", yscale="log")
rates.legend(loc="lower left")

norms.plot(first.norms + second.norms, color=BLUE, linewidth=0.8, label="before clipping")
norms.axhline(2.0, color=ORANGE, label="threshold")
norms.set(title="Gradient norm", xlabel="optimizer step")
norms.legend()

trainable.plot(first.trainable + second.trainable, color=GREEN)
trainable.set(title="Trainable parameters", xlabel="optimizer step")

epochs = range(1, 2 * EPOCHS + 1)
accuracies.plot(epochs, first.live + second.live, color=BLUE, label="live weights")
accuracies.plot(epochs, first.validated + second.validated, color=ORANGE, label="their average")
accuracies.axvline(EPOCHS + 0.5, color=GREY, linestyle=":", label="from 8 to 10 digits")
accuracies.set(title="Validation accuracy", xlabel="epoch")
accuracies.legend()
plt.show()

# %% [markdown]
# ## A mistake is an error that says what to do

# %%
for wrong in (
    lambda: EMAWeights(decay=1.5),
    lambda: WarmupCosine(warmup=0.05),
    lambda: GradientClip(max_nrom=1.0),
    lambda: train(pretrained, GradientClip(params="encoder.*")),
    lambda: train(pretrained, WarmupCosine(), WarmupCosine(label="second")),
):
    try:
        wrong()
    except (TypeError, ValueError) as error:
        print(f"{type(error).__name__}: {error}")
