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
# # Which of these checkpoints do I ship?
#
# One pretrained network was fine-tuned four times, with other orders of the data. Four checkpoints lie in a
# folder, each about as good as the others. Ship the best one, all of them as an ensemble, or one network made
# of all? And when can weights be fused at all?
#
# Choices are made on one half of the held-out digits, and the numbers reported are those of the other: the
# best of several, measured on what chose it, always looks better than it is. 40 % of the labels to train on
# are drawn at random, so that there is something to lose.

# %%
import io
import logging
import tempfile
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tricks import (
    Aligned,
    Average,
    GreedySoup,
    Interpolate,
    LastEpochs,
    LearnedSoup,
    Probe,
    TaskArithmetic,
    Ties,
    WarmupCosine,
    WeightFusion,
    fuse,
    interpolation_curve,
    permutation_spec,
)
from lightning_tricks.lifecycle.figures import BLUE, GREY, STYLE
from lightning_tricks.recipes.digits import QUIET, DigitsClassifier, DigitsData, with_label_noise

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")
torch.set_num_threads(1)  # on networks as small as these, more only wait for one another
plt.rcParams.update(STYLE)
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## Four fine-tuned networks


# %%
class Halves(LightningDataModule):
    """Digits to train on, a share of the labels drawn anew, and two halves of others with right ones."""

    def __init__(self, noise=0.0, digits=range(10), order=0):
        super().__init__()
        data = DigitsData()
        data.setup("fit")
        images, labels = data.train_set.tensors
        kept = torch.isin(labels, torch.tensor(list(digits)))
        noisy = with_label_noise(labels[kept], share=noise, classes=10, seed=0)
        self.train_set, self.order = TensorDataset(images[kept], noisy), order
        self.choosing = [half[::2] for half in data.val_set.tensors]
        self.reporting = [half[1::2] for half in data.val_set.tensors]

    def train_dataloader(self):
        order = torch.Generator().manual_seed(self.order)
        return DataLoader(self.train_set, 64, shuffle=True, drop_last=True, generator=order)

    def val_dataloader(self):
        return DataLoader(TensorDataset(*self.choosing), 512)


def fresh(seed=0):
    torch.manual_seed(seed)
    layers = (nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    return DigitsClassifier(nn.Sequential(nn.Flatten(), *layers))


def train(start, data, *techniques, epochs, lr=0.05):
    """Train a copy of ``start`` and return it."""
    model = fresh()
    model.load_state_dict(start.state_dict())
    model.lr = lr
    settings = {"max_epochs": epochs, "default_root_dir": folder, **QUIET}
    Trainer(callbacks=list(techniques), **settings).fit(model, data)
    return model


holder = fresh()


@torch.no_grad()
def accuracy(weights, half, digits=range(10)):
    """Return the accuracy of a state dict."""
    holder.load_state_dict(weights)
    images, labels = half
    kept = torch.isin(labels, torch.tensor(list(digits)))
    return (holder(images[kept]).argmax(dim=1) == labels[kept]).float().mean().item()


def four_checkpoints(seed):
    pretrained = train(fresh(seed), Halves(noise=0.4), epochs=3)
    files = [folder / f"{seed}-{order}.pt" for order in range(4)]
    for order, file in enumerate(files):
        model = train(pretrained, Halves(noise=0.4, order=order), epochs=10)
        torch.save(model.state_dict(), file)  # or a file that ModelCheckpoint wrote
    return files


# %% [markdown]
# ## Ways to make one of them
#
# `fuse` takes files, modules or state dicts. Some methods need to know more: `GreedySoup` how good a
# candidate is, `LearnedSoup` a module with held-out data and a loss. The command line does the same:
# `lightning-tricks fuse a.ckpt b.ckpt -o fused.ckpt`, and `fuse --compare` tells how alike they are, layer by
# layer.

# %%
data = Halves(noise=0.4)
images, labels = data.reporting


def choose(weights):
    return accuracy(weights, data.choosing)


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


@torch.no_grad()
def ensemble(models):
    chances = []
    for weights in models:
        holder.load_state_dict(weights)
        chances.append(holder(images).softmax(dim=1))
    return (sum(chances).argmax(dim=1) == labels).float().mean().item()


sets = []
for seed in (0, 1, 2):
    files = four_checkpoints(seed)
    models = [torch.load(file) for file in files]
    ways = {
        "best when chosen": max(models, key=choose),
        "Average": fuse(files, Average()),
        "GreedySoup": fuse(files, GreedySoup("accuracy", "max"), evaluate=choose),
        "LearnedSoup": fuse(files, LearnedSoup(), probe=Probe(fresh(), [data.choosing], loss)),
    }
    scores = {name: accuracy(weights, data.reporting) for name, weights in ways.items()}
    singles = [accuracy(weights, data.reporting) for weights in models]
    sets.append({"single": singles, **scores, "ensemble of four": ensemble(models)})

print(f"{'accuracy':>18}   three sets of four        mean")
for name in sets[0]:
    values = [mean(found[name]) if name == "single" else found[name] for found in sets]
    print(f"{name:>18}   {'   '.join(f'{value:.1%}' for value in values)}   {mean(values):.1%}")

# %% [markdown]
# ## When can weights be fused?
#
# Only if the networks lie in one valley. `interpolation_curve` walks from one network to another and
# measures all along. The barrier is how much the error rises above the straight line between both ends. A
# third network, from other initial weights, is a little worse than the others, and its units stand in
# another order. `Aligned` finds the order of the first in it.

# %%
first, second = models[:2]
other = train(fresh(seed=9), Halves(noise=0.4), epochs=13).state_dict()
spec = permutation_spec(fresh())  # which units of the network can be exchanged
aligned = fuse([first, other], Aligned(Interpolate(0.0), spec=spec))


def error(weights):
    return 1 - accuracy(weights, data.reporting)


lines = {
    "same pretraining": [first, second],
    "other initial weights": [first, other],
    "the same, aligned": [first, aligned],
}
curves = {name: interpolation_curve(pair, error, points=11) for name, pair in lines.items()}

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
ways = list(sets[0])
for place, found in enumerate(sets):
    left.plot(found["single"], [0] * 4, "o", color=GREY, markersize=5)
    values = [found[way] for way in ways[1:]]
    left.plot(values, range(1, len(ways)), "osD"[place], color=BLUE, label=f"set {place + 1}")
left.set_yticks(range(len(ways)), ways)
left.set(title="Accuracy of one network, and of what was made of four", xlabel="accuracy")
left.invert_yaxis()
left.legend()
for (name, curve), marker in zip(curves.items(), "osD", strict=True):
    label = f"{name}: barrier {curve.barriers[0]:.1%}"
    right.plot(curve.positions, curve.values, marker=marker, markersize=4, label=label)
right.set(
    title="Error on the line from the first network to another", xlabel="share of the other", ylim=(0, 0.26)
)
right.legend()
plt.show()

# %% [markdown]
# Grey are the single networks. The average of four is better than all of those that it was made of, nearly as
# good as the ensemble at a quarter of its cost, and there was no choice to be made. The two soups that look
# at data chose no better than that here; they earn their keep where one of the models is bad.
#
# Networks with the same start have no barrier between them: half way it is even better than at both ends. Two
# of different origin have one, and their mean is worse than either. Aligned they have none.
#
# ## Two tasks, one network
#
# The same network was tuned twice, on the digits 0 to 4 and on 5 to 9, with right labels. Each has forgotten
# the other half. `TaskArithmetic` and `Ties` get the network before tuning first, and work on the changes.

# %%
base = train(fresh(), Halves(noise=0.5), epochs=4)
low, high = range(5), range(5, 10)
experts = {
    "tuned on 0 to 4": train(base, Halves(digits=low), epochs=4, lr=0.01),
    "tuned on 5 to 9": train(base, Halves(digits=high), epochs=4, lr=0.01),
}
models = [base, *experts.values()]
rows = {
    "before": base.state_dict(),
    **{name: model.state_dict() for name, model in experts.items()},
    "Average of both": fuse(models[1:], Average()),
    "TaskArithmetic": fuse(models, TaskArithmetic(scale=1.0)),
    "Ties": fuse(models, Ties(density=0.5)),
}
print(f"{'accuracy on':>17}  0 to 4  5 to 9     all")
for name, weights in rows.items():
    shares = [accuracy(weights, data.reporting, digits) for digits in (low, high, range(10))]
    print(f"{name:>17}" + "".join(f"{share:>8.1%}" for share in shares))

# %% [markdown]
# ## Within one run
#
# `WeightFusion` does this with snapshots of a single run, at its end, and keeps the result only if the metric
# is no worse. It pays after a run at a constant rate. After one whose rate fell to 0 the last weights are
# already the average of the valley, in a way, and it says so and leaves them.

# %%
pretrained = train(fresh(), Halves(noise=0.4), epochs=3)
for name, schedule in {"constant rate": [], "WarmupCosine": [WarmupCosine()]}.items():
    fusion = WeightFusion(collect=LastEpochs(5), monitor="val_loss", mode="min")
    with redirect_stdout(io.StringIO()):  # it prints what outcome() returns
        train(pretrained, Halves(noise=0.4), *schedule, fusion, epochs=10)
    found = fusion.outcome()
    print(f"{name}: loss {found['metric_before']:.3f} -> {found['metric_fused']:.3f}, kept: {found['kept']}")

# %% [markdown]
# ## What to take away
#
# - Several fine-tunings of one network: ship their average. It costs what one costs, and needs no choice.
# - Measure the line between two networks first. A barrier means: do not average, or align them before.
# - Two tasks can be put together without training on both. That is worse than either expert at its own task,
#   and far better than either at both.
# - Let something held out decide, and report on something else.
