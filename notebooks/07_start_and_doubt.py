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
# # It does not start to learn; and later, how sure is it?
#
# Two questions about a network itself. A deep one without normalisation stands still at chance: is that the
# data, the rate, or its first weights? And one that has learnt gives a class for everything: which of its
# answers should somebody look at?
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
from torch.utils.data import DataLoader, TensorDataset

from lightning_tricks import LSUV, MonteCarloDropout, WeightInit
from lightning_tricks.lifecycle.figures import STYLE
from lightning_tricks.recipes.digits import QUIET, DigitsClassifier, DigitsData

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")  # what the techniques warn of is printed below
torch.set_num_threads(1)  # on networks as small as these, more only wait for one another
plt.rcParams.update(STYLE)
SEEDS = (0, 1, 2)

# %% [markdown]
# ## Fifteen layers that stand still
#
# The same network with three kinds of first weights: those that torch gives a linear layer, Kaiming's by a
# formula, and LSUV's, which are scaled on real batches until what each layer hands on has a variance of 1.


# %%
def deep(seed):
    torch.manual_seed(seed)
    hidden = [part for _ in range(15) for part in (nn.Linear(64, 64), nn.ReLU())]
    return DigitsClassifier(nn.Sequential(nn.Flatten(), *hidden, nn.Linear(64, 10)), lr=0.02)


class Sizes(Callback):
    """Notes down, before the first step, how much the outputs of each linear layer differ among images."""

    @torch.no_grad()
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == 0:
            values, self.sizes = batch[0], []
            for layer in module.network:
                values = layer(values)
                if isinstance(layer, nn.Linear):
                    self.sizes.append(values.std(dim=0).mean().item())


def train(model, *techniques, epochs, **data):
    trainer = Trainer(max_epochs=epochs, callbacks=list(techniques), **QUIET)
    with redirect_stdout(io.StringIO()):  # a table of what was initialised, each time
        trainer.fit(model, DigitsData(**data))
    return float(trainer.callback_metrics["val_accuracy"])


starts = {
    "torch's own": lambda: [],
    "WeightInit": lambda: [WeightInit(scheme="kaiming_normal")],
    "LSUV": lambda: [LSUV()],
}
figure, panel = plt.subplots(figsize=(7, 3.4), layout="constrained")
for (name, make), marker in zip(starts.items(), "osD", strict=True):
    look = Sizes()
    scores = [train(deep(seed), *make(), look, epochs=8, seed=seed) for seed in SEEDS]
    print(f"{name:>12}: accuracy {mean(scores):.1%} ± {stdev(scores):.1%}")
    panel.plot(range(1, 17), look.sizes, marker=marker, markersize=4, label=name)
panel.set(
    title="How much of what tells images apart each layer hands on, before training",
    xlabel="layer",
    yscale="log",
)
panel.set_ylabel("standard deviation")
panel.legend(loc="lower left")
plt.show()

# %% [markdown]
# torch's own weights make each layer hand on less than half of what it got: after fifteen nothing of the
# image is left, and no gradient comes back. With either of the others it learns, but far from equally well
# with each seed: a deviation as large as LSUV's means that one of three was many points behind. So these
# numbers do not tell which is better; normalisation or residual blocks would still do more for so deep a
# network.
#
# ## How sure is it?
#
# A network with dropout has learnt on 600 digits, and now sees noisy ones. `MonteCarloDropout` predicts each
# batch 30 times with dropout on, and returns mean and spread.

# %%
torch.manual_seed(0)
layers = (nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 10))
classifier = DigitsClassifier(nn.Sequential(nn.Flatten(), *layers))
print(f"accuracy {train(classifier, epochs=10, training=600):.1%}")

data = DigitsData(training=600)
data.setup("fit")
images, labels = data.val_set.tensors
noisy = images + 1.5 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
loader = DataLoader(TensorDataset(noisy), batch_size=512)

once = torch.cat(Trainer(**QUIET).predict(classifier, loader))
spreads = Trainer(callbacks=[MonteCarloDropout(passes=30, seed=0)], **QUIET).predict(classifier, loader)
average = torch.cat([each.mean for each in spreads])
spread = torch.cat([each.std for each in spreads])


def accuracy_of_surest(probabilities, doubt, shares):
    right = probabilities.argmax(dim=1) == labels
    order = doubt.argsort()
    return [right[order[: int(share * len(labels))]].float().mean().item() for share in shares]


shares = [share / 20 for share in range(4, 21)]
curves = {
    "one pass, by its probability": accuracy_of_surest(once, 1 - once.amax(1), shares),
    "30 passes, by the mean's probability": accuracy_of_surest(average, 1 - average.amax(1), shares),
    "30 passes, by their spread": accuracy_of_surest(average, spread.amax(1), shares),
}
for name, probabilities in {"one pass": once, "mean of 30 passes": average}.items():
    loss = nn.functional.nll_loss(probabilities.log(), labels)
    claimed, right = probabilities.amax(1).mean(), (probabilities.argmax(1) == labels).float().mean()
    print(f"{name}: claims {claimed:.1%}, right {right:.1%}, log loss {loss:.2f}")

figure, panel = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
for (name, values), marker in zip(curves.items(), "osD", strict=True):
    panel.plot(shares, values, marker=marker, markersize=4, label=name)
panel.set(title="Accuracy on what it is surest of, noisy images", xlabel="share that is answered")
panel.legend()
plt.show()

# %% [markdown]
# One pass claims 84 % and is right in 65 %: far too sure. The mean of 30 passes claims less, and has the
# lower log loss. It does not get more digits right, and if only the surest half is answered, a single pass
# chooses that half as well; the spread chooses worse. So it is worth its price where probabilities themselves
# are used, and not for picking what to look at.
#
# ## What to take away
#
# - Stands still at chance? Look at what each layer hands on before training. A line that falls by orders of
#   magnitude is the answer.
# - `WeightInit` where a formula fits the activation, `LSUV` where none does; neither over weights that were
#   trained.
# - Probabilities of one pass are too sure of images unlike those of training. `MonteCarloDropout` mends a
#   part of that.
# - Check on data of your own whether spread tells you more than the probability does. Here it did not.
