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
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tricks import LSUV, Diagnosis, MonteCarloDropout, WeightInit
from lightning_tricks.lifecycle.figures import BLUE, GREY, ORANGE, STYLE
from lightning_tricks.recipes.digits import QUIET, DigitsClassifier, DigitsData

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")  # what the techniques warn of is printed below
torch.set_num_threads(1)  # on networks as small as these, more only wait for one another
plt.rcParams.update(STYLE)
SEEDS = (0, 1, 2)

# %% [markdown]
# ## Twenty layers that stand still


# %%
def deep(seed):
    torch.manual_seed(seed)
    widths = [64] * 20
    hidden = [part for width in widths for part in (nn.Linear(width, width), nn.ReLU())]
    return DigitsClassifier(nn.Sequential(nn.Flatten(), *hidden, nn.Linear(64, 10)), lr=0.02)


def train(model, *techniques, epochs, **data):
    trainer = Trainer(max_epochs=epochs, callbacks=list(techniques), log_every_n_steps=1, **QUIET)
    with redirect_stdout(io.StringIO()):  # tables of what was initialised, each time
        trainer.fit(model, DigitsData(**data))
    return float(trainer.callback_metrics["val_accuracy"])


diagnosis = Diagnosis(every=5)
print(f"accuracy {train(deep(0), diagnosis, epochs=5):.1%}, ten classes")
for kind, finding in diagnosis.findings.items():
    print(f"{kind}: {finding.evidence}")

# %%
starts = {
    "torch's own": lambda: [],
    "WeightInit": lambda: [WeightInit(scheme="kaiming_normal")],
    "LSUV": lambda: [LSUV()],
}
scores = {
    name: [train(deep(seed), *make(), epochs=5, seed=seed) for seed in SEEDS] for name, make in starts.items()
}
for name, values in scores.items():
    print(f"{name:>12}  {mean(values):.1%} ± {stdev(values):.1%}")


@torch.no_grad()
def sizes(model, images):
    """Return the standard deviation behind each hidden layer, over the images."""
    found = []
    for layer in model.network:
        images = layer(images)
        if isinstance(layer, nn.Linear):
            found.append(images.std().item())
    return found


data = DigitsData()
data.setup("fit")
figure, panel = plt.subplots(figsize=(7, 3.4), layout="constrained")
for (name, make), marker in zip(starts.items(), "osD", strict=True):
    model = deep(0)
    Trainer(max_steps=1, callbacks=make(), limit_val_batches=0, **QUIET)
    frozen = DigitsClassifier(model.network, lr=1e-12)
    train(frozen, *make(), epochs=1)
    panel.plot(range(1, 22), sizes(frozen, data.val_set.tensors[0]), marker=marker, markersize=4, label=name)
panel.set(title="How large what each layer hands on is, before training", xlabel="layer", yscale="log")
panel.set_ylabel("standard deviation")
panel.legend()
plt.show()

# %% [markdown]
# ## How sure is it?

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
    "1 - probability, one pass": accuracy_of_surest(once, 1 - once.amax(1), shares),
    "1 - probability, mean of 30": accuracy_of_surest(average, 1 - average.amax(1), shares),
    "spread of 30 passes": accuracy_of_surest(average, spread.amax(1), shares),
}
for n, v in curves.items():
    print(n, [round(x, 3) for x in v])
