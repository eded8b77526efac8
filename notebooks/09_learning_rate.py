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
# # Which learning rate, and how should it fall?
#
# At one that is too low a network has learnt little when the time is up; at one that is too high it
# never settles. How does one find the right one, how much does it matter that it falls, and in which
# shape? Or is there an optimizer that needs no schedule at all?
#
# A network of three layers learns 1,000 of the digits that come with scikit-learn, in 100 steps. Two
# labels in ten are drawn at random; those of validation are right.

# %%
import io
import logging
import warnings
from contextlib import redirect_stdout
from statistics import mean, stdev

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from lightning_tricks import (
    LearningRate,
    Lookahead,
    OptimizerMixin,
    OptimizerSettings,
    ScheduleFree,
    SharpnessAware,
    WarmupCosine,
)
from lightning_tricks.core.duration import Horizon
from lightning_tricks.core.notation import as_schedule
from lightning_tricks.lifecycle.figures import BLUE, GREY, STYLE
from lightning_tricks.recipes.digits import QUIET, DigitsData

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")
torch.set_num_threads(1)  # on networks as small as these, more only wait for one another
plt.rcParams.update(STYLE)
SEEDS = (0, 1, 2)
parts = {seed: DigitsData(label_noise=0.2, seed=seed) for seed in SEEDS}
for data in parts.values():
    data.setup("fit")


def batches(seed):
    """100 images at a time, taken out of the data at once, which costs less than one by one."""
    data = parts[seed].train_set
    order = RandomSampler(data, generator=torch.Generator().manual_seed(seed))
    return DataLoader(data, batch_size=None, sampler=BatchSampler(order, 100, drop_last=True))


# %% [markdown]
# The optimizer is a description (`OptimizerMixin`), so that another one is another line.


# %%
class Digits(OptimizerMixin, LightningModule):
    def __init__(self, settings):
        super().__init__()
        self.optimizer_settings = settings
        layers = (nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.network = nn.Sequential(nn.Flatten(), *layers)

    def training_step(self, batch, batch_idx):
        return cross_entropy(self.network(batch[0]), batch[1])


def sgd(lr):
    return OptimizerSettings("SGD", lr=lr, options={"momentum": 0.9})


def train(settings, *techniques, seed):
    """Train for 100 steps and return the accuracy on labels that are right."""
    torch.manual_seed(seed)
    model = Digits(settings)
    Trainer(max_epochs=10, callbacks=list(techniques), **QUIET).fit(model, batches(seed))
    images, labels = parts[seed].val_set.tensors
    with torch.no_grad():
        return (model.network(images).argmax(dim=1) == labels).float().mean().item()


# %% [markdown]
# ## One run through all rates
#
# The rate rises a little with each step, from one that does nothing to one that destroys.
# `OptimizerMixin` says what will be stepped; biases would get no weight decay.


# %%
class Losses(Callback):
    def __init__(self):
        self.rates, self.losses = [], []

    def on_train_batch_end(self, trainer, module, outputs, *_):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.losses.append(float(outputs["loss"]))


rising = Losses()
_ = train(sgd(1e-3), LearningRate(schedule="exponential(to=3000)"), rising, seed=0)

figure, panel = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
panel.plot(rising.rates, rising.losses, color=BLUE)
panel.set(title="Loss of one run while the rate rises", xlabel="learning rate", xscale="log", ylim=(0.8, 3.2))
panel.set_ylabel("loss of a batch")
plt.show()

# %% [markdown]
# The loss begins to fall at 0.02, falls fastest before 0.1, is lowest near 0.4, and is lost beyond 1. The
# end of the steep part, 0.1, is a good first guess, and three times as much still learns. But the run
# tells of the first steps only. What is right at the start may be too high for the end.
#
# ## At a constant rate, and at one that falls

# %%
RATES = (0.01, 0.03, 0.1, 0.3)


def scores_of(settings, make):
    with redirect_stdout(io.StringIO()):  # the optimizer's table, as above
        return [train(settings, *make(), seed=seed) for seed in SEEDS]


def told(scores):
    return f"{mean(scores):.1%} ± {stdev(scores):.1%}"


SCHEDULES = (lambda: [], lambda: [WarmupCosine()])
constant, falling = ({rate: scores_of(sgd(rate), make) for rate in RATES} for make in SCHEDULES)
print("  rate  constant        WarmupCosine")
for rate in RATES:
    print(f"{rate:>6}  {told(constant[rate])}    {told(falling[rate])}")

figure, panel = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
for (label, scores), color, marker in zip(
    {"constant": constant, "WarmupCosine": falling}.items(), (GREY, BLUE), "os", strict=True
):
    panel.plot(RATES, [mean(scores[rate]) for rate in RATES], color=color, marker=marker, label=label)
    for rate in RATES:
        panel.plot([rate] * len(SEEDS), scores[rate], ".", color=color, alpha=0.5)
panel.set(title="Accuracy after 100 steps, three seeds", xlabel="highest learning rate", xscale="log")
panel.set_xticks(RATES, [str(rate) for rate in RATES])
panel.minorticks_off()
panel.legend()
plt.show()

# %% [markdown]
# Constant rates of 0.03 and 0.1 are as good as one another, and 0.3 is three points worse. Of rates that
# fall to 0, those from 0.1 and 0.3 are as good as one another, on average a point better than the best
# constant one, which is no more than seeds differ. They have to begin high, though: from 0.01 such a rate is
# the worst of all, for on average it is half of that.
#
# ## In which shape?
#
# A schedule is a text, and `lightning-tricks schedule "warmup('5%') >> cosine()"` shows one before you
# train with it. Here are six, all from the rate 0.1.

# %%
shapes = {
    "constant": "constant()",
    "cosine": "warmup('5%') >> cosine()",
    "linear": "warmup('5%') >> linear(to=0.0)",
    "steps": "multistep(['50%', '75%'])",
    "stable, then down": "warmup('5%') >> stable_decay('30%')",
    "restarts": "cosine_restarts('50%')",
}
known = {"constant": constant[0.1], "cosine": falling[0.1]}  # WarmupCosine is the second by another name
of_shapes = {
    name: known.get(name) or scores_of(sgd(0.1), lambda text=text: [LearningRate(schedule=text)])
    for name, text in shapes.items()
}

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
for place, (name, text) in enumerate(shapes.items()):
    factor = as_schedule("shape", text).resolve(Horizon(100))
    left.plot([0.1 * factor(step) for step in range(101)], label=name)
    right.plot(of_shapes[name], [place] * len(SEEDS), ".", color=GREY)
    right.plot(mean(of_shapes[name]), place, "|", color=BLUE, markersize=16, markeredgewidth=2)
left.set(title="Learning rate", xlabel="step")
left.legend()
right.set(title="Accuracy, three seeds and their mean", xlabel="accuracy on right labels")
right.set_yticks(range(len(shapes)), shapes)
right.set_ylim(len(shapes) - 0.5, -0.5)
plt.show()

for name, scores in of_shapes.items():
    print(f"{name:>17}  {told(scores)}")

# %% [markdown]
# It does not matter: all that fall are as good as one another. What does not fall is a point worse on
# average, above all for one seed of three.
# So choose by other reasons. `stable_decay` can wait until you know when training ends, `multistep`
# wants moments to be chosen, and restarts bring nothing that one fall does not.
#
# ## Or another optimizer, and no schedule?
#
# `Lookahead` and `SharpnessAware` work around whatever optimizer there is, the second one at twice the
# cost. Adam divides each step by the size of past gradients. Schedule-Free averages instead of falling,
# and need not know when training ends. The rates of the last two are the best of three or four, for
# Adam with one that falls.

# %%
adam = OptimizerSettings("AdamW", lr=0.01, weight_decay=0.0)
free = OptimizerSettings("SGDScheduleFree", lr=1.0)
table = {
    "SGD": (constant[0.1], falling[0.1]),
    "SGD, Lookahead": [scores_of(sgd(0.1), lambda more=more: [Lookahead(), *more()]) for more in SCHEDULES],
    "SGD, SharpnessAware": [
        scores_of(sgd(0.1), lambda more=more: [SharpnessAware(rho=0.1), *more()]) for more in SCHEDULES
    ],
    "AdamW": [scores_of(adam, more) for more in SCHEDULES],
    "Schedule-Free SGD": [scores_of(free, lambda: [ScheduleFree()])],
}
print(" " * 21 + "constant        WarmupCosine")
for name, columns in table.items():
    print(f"{name:>19}  " + "    ".join(told(scores) for scores in columns))

# %% [markdown]
# Three seeds tell none of these from SGD: all means lie within two points, and a seed differs by more than
# one. Where nothing falls, `Lookahead` and Schedule-Free come out a point higher, about as high as a rate
# that falls, and Schedule-Free never asked how long the run is. Beside a rate that falls nothing brings
# more, and `SharpnessAware` takes twice the time of a step.
#
# ## What to take away
#
# - One run through all rates first. Begin at the end of the steep part, then try a third of it and
#   three times as much.
# - Let the rate fall to 0, in whatever shape, and try rates with the schedule on: it takes, and needs,
#   higher ones.
# - Beware of a low rate that falls on top. With a short run that costs most of all that was tried here.
# - What averages may stand in for a schedule: `Lookahead`, Schedule-Free, and averages of the weights
#   ([which weights do I keep?](03_which_weights.ipynb)). Whether it does on your data, ask more seeds.
