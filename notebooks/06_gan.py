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
# # My GAN does not learn
#
# The losses are no help: one player's gain is the other's loss, and a curve that falls may mean that the
# other has given up. How does one see what is wrong, which knob is it, and how good are the samples?
#
# The generator draws digits of 8x8 pixels, like those that come with scikit-learn. A classifier of real
# digits scores what it draws.

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
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_tricks import (
    Diagnosis,
    EMAWeights,
    FailureSignals,
    GANMixin,
    GradientPenalty,
    Latent,
    Player,
    SampleGrid,
)
from lightning_tricks.lifecycle.figures import STYLE
from lightning_tricks.recipes.digits import QUIET
from lightning_tricks.recipes.digits_gan import DigitsInRange, digit_scores, trained_reader
from lightning_tricks.recipes.gan_pair import Critic, Generator

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")  # what the techniques warn of is printed below
torch.set_num_threads(1)  # on networks as small as these, more only wait for one another
plt.rcParams.update(STYLE)
EPOCHS = 12

# %% [markdown]
# ## A GAN in ten lines, and a mistake in one of them
#
# `GANMixin` brings the training step with its two optimizers. The critic's rate is twenty times that of the
# generator, with Adam's usual momentum: settings that would pass for reasonable anywhere else.


# %%
class DigitsGAN(GANMixin, LightningModule):
    latent = Latent(16)
    generator_optimizer = Player("Adam", lr=5e-4)
    critic_optimizer = Player("Adam", lr=1e-2)
    failure_signals = FailureSignals(start=50, window=8)  # by default patient, for longer runs

    def __init__(self):
        super().__init__()
        self.generator, self.critic = Generator(latent=16), Critic()


class Curves(Callback):
    """Keeps what is logged at each step."""

    def __init__(self):
        self.steps = {}

    def on_train_batch_end(self, trainer, module, *_):
        for name, value in trainer.callback_metrics.items():
            self.steps.setdefault(name, []).append(float(value))


data = DigitsInRange(training=1200)
reader = trained_reader(data, epochs=5)


pictures = Path(tempfile.mkdtemp())


def train(kind, *techniques, seed=0):
    torch.manual_seed(seed)
    gan = kind()
    gan.gan_seed = seed
    gan.sample_grid = SampleGrid(count=24, columns=8, folder=str(pictures / f"{kind.__name__} {seed}"))
    settings = {**QUIET, "limit_val_batches": 0, "log_every_n_steps": 1}
    with redirect_stdout(io.StringIO()):
        Trainer(max_epochs=EPOCHS, callbacks=list(techniques), **settings).fit(gan, data)
    return gan


@torch.no_grad()
def score(gan):
    samples = gan.eval()(gan.latent.draw(512, torch.Generator().manual_seed(0)))
    return digit_scores(reader, samples, data.val_set.tensors[0])


diagnosis, curves = Diagnosis(every=10), Curves()
gan = train(DigitsGAN, diagnosis, curves)
print({name: round(value, 2) for name, value in score(gan).items()})
for name, finding in diagnosis.findings.items():
    print(f"step {finding.step}, {name}: {finding.evidence}")

# %% [markdown]
# `recognised` is the share of samples that the classifier is sure of, `digits` how many of the ten are drawn
# at all, and `frechet` the distance of the classifier's features from those of real images: 0 is best. All
# three are bad, and `Diagnosis` collects what `GANMixin` noticed while it trained: exploding gradients,
# samples that are all alike, a critic that has won. Each sentence says what to do.
#
# ## Two changes, one after the other
#
# With each we also keep an average of the generator, which costs nothing in training, and score both sets of
# weights.


# %%
class Calm(DigitsGAN):
    """Rates near each other, and no momentum: what the players learn against changes all the time."""

    generator_optimizer = Player("Adam", lr=2e-3, options={"betas": (0.0, 0.99)})
    critic_optimizer = Player("Adam", lr=4e-3, options={"betas": (0.0, 0.99)})


class Penalised(Calm):
    """And a critic whose slope is held to 1."""

    penalties = GradientPenalty(1.0, one_sided=True)


runs, scores = {"DigitsGAN": curves.steps}, {"DigitsGAN, one run": [score(gan)]}
for kind in (Calm, Penalised):
    for seed in (0, 1, 2):
        average, curves = EMAWeights(decay=0.99, params="generator"), Curves()
        gan = train(kind, average, curves, seed=seed)
        runs.setdefault(kind.__name__, curves.steps)
        with average.live_weights():
            scores.setdefault(kind.__name__, []).append(score(gan))
        scores.setdefault(f"{kind.__name__}, average", []).append(score(gan))

print(f"{'mean of three seeds':>19}  recognised  digits  frechet (least to greatest)")
for name, found in scores.items():
    recognised, digits, frechet = ([each[key] for each in found] for key in found[0])
    spread = f"{mean(frechet):.1f} ({min(frechet):.1f} to {max(frechet):.1f})"
    print(f"{name:>19}  {mean(recognised):>10.0%}  {mean(digits):>6.1f}  {spread}")

# %%
figure, panels = plt.subplots(1, 3, figsize=(11, 3.1), layout="constrained")
shown = {
    "gan/critic_loss": "Critic's loss",
    "gan/gradient_norm/critic": "Norm of the critic's gradient",
    "gan/variance": "Variance of samples / of real images",
}
for panel, (metric, title) in zip(panels, shown.items(), strict=True):
    for name, steps in runs.items():
        panel.plot(steps[metric], label=name, linewidth=1)
    panel.set(title=title, xlabel="step")
panels[0].legend()
panels[1].set_yscale("log")
plt.show()

# %%
figure, panels = plt.subplots(3, 4, figsize=(10, 3.3), layout="constrained")
for row, name in zip(panels, runs, strict=True):
    for panel, epoch in zip(row, (0, 2, 5, EPOCHS - 1), strict=True):
        panel.imshow(plt.imread(pictures / f"{name} 0" / f"epoch-{epoch:04d}.png"), cmap="gray")
        panel.set(xticks=[], yticks=[], title=f"epoch {epoch + 1}" if name == "DigitsGAN" else "")
    row[0].set_ylabel(name)
plt.show()

# %% [markdown]
# The critic's loss of the two that work stays at 1.39, twice the logarithm of 2: the critic cannot tell fake
# from real. That is what a good GAN looks like, and a flat line in any other training would be a failure. The
# variance of the samples says more than either loss.
#
# The change of rates and momentum did it. The penalty adds nothing in so short a run; beside the average it
# does after 40 epochs (`python -m benchmarks.gan`). The average cuts the distance to less than half with
# both, and costs nothing but its memory.
#
# ## What to take away
#
# - Do not read GAN losses; read `gan/variance`, gradient norms, the signs of failure, and pictures from fixed
#   latent points (`SampleGrid`).
# - First put both rates near each other, with no momentum (`betas=(0.0, 0.99)`). Only then try penalties.
# - Sample from `EMAWeights(params="generator")`. It helped more than the penalty, and after the rates most
#   of all.
# - A score from a classifier of real data, even a rough one, tells which of two GANs is better. Look at
#   several seeds.
