"""A GAN that draws handwritten digits, and a classifier of real ones that scores what it draws.

    recognised   share of the samples to which the classifier gives one digit with more than 90 %
    digits       how many of the ten make up 2 % of the samples or more, by the classifier's first choice
    frechet      |m - m'|^2 + tr(C + C' - 2 (C^1/2 C' C^1/2)^1/2)

of means ``m`` and covariances ``C`` of the classifier's features, of samples and of real images; 0 where both
are alike, so it rises when samples are of few kinds as well as when they are no digits.

References: Salimans et al., "Improved Techniques for Training GANs", 2016, https://arxiv.org/abs/1606.03498,
section 4; Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium",
2017, https://arxiv.org/abs/1706.08500, equation 6.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_tricks.objectives.critic_penalties import GradientPenalty
from lightning_tricks.objectives.gan_mixin import GANMixin
from lightning_tricks.objectives.gan_player import Player
from lightning_tricks.objectives.latent import Latent
from lightning_tricks.recipes.digits import QUIET, DigitsClassifier, DigitsData
from lightning_tricks.recipes.gan_pair import Critic, Generator

__all__ = ["DigitReader", "DigitsGAN", "DigitsInRange", "digit_scores", "frechet_distance", "trained_reader"]

_SEEN = 512
"""Samples that a score is taken over."""


class DigitsInRange(DigitsData):
    """Digits with pixels in [-1, 1], where a generator's tanh leads, instead of standardised ones."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        sets = [self.train_set.tensors, self.val_set.tensors]
        # Pixels are whole numbers from 0, which the first pixel of most images is, to 16.
        low = min(images.min() for images, _ in sets)
        high = max(images.max() for images, _ in sets)
        self.train_set, self.val_set = (
            TensorDataset(2 * (images - low) / (high - low) - 1, labels) for images, labels in sets
        )


class DigitReader(nn.Module):
    """A small network that tells digits apart.

    Attributes:
        features: Maps images, shape (n, 1, 8, 8), to features, shape (n, 64).
        head: Maps these to logits, shape (n, 10).
    """

    def __init__(self) -> None:
        """Build the network with torch's own initial weights."""
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(512, 64), nn.ReLU()),
        )
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, shape (n, 10)."""
        logits: Tensor = self.head(self.features(images))
        return logits


def trained_reader(data: DigitsData, *, epochs: int = 10, seed: int = 0) -> DigitReader:
    """Return a reader of digits, trained on the training part of ``data`` and in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        reader = DigitReader()
        Trainer(max_epochs=epochs, **QUIET).fit(DigitsClassifier(reader), data)
    return reader.eval()


@torch.no_grad()
def frechet_distance(features: Tensor, others: Tensor) -> float:
    """Return the Fréchet distance of two normal laws with the moments of ``features`` and of ``others``.

    Args:
        features: Of shape (n, d), n at least 2.
        others: Of shape (m, d), m at least 2.

    Example:
        >>> one = torch.tensor([[-1.0], [1.0]])  # mean 0, variance 2
        >>> round(frechet_distance(one, 2 * one + 3), 4)  # mean 3, variance 8
        11.0
    """
    (mean, root), (other_mean, other_root) = (_moments(each.double()) for each in (features, others))
    apart = (mean - other_mean).square().sum() + root.square().sum() + other_root.square().sum()
    # The trace of (C^1/2 C' C^1/2)^1/2 is the sum of the singular values of C^1/2 C'^1/2.
    distance: Tensor = apart - 2 * torch.linalg.matrix_norm(root @ other_root, "nuc")
    return distance.item()


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the symmetric root of the covariance."""
    values, axes = torch.linalg.eigh(torch.cov(features.T).reshape(features.shape[1], -1))
    return features.mean(0), axes * values.clamp(min=0.0).sqrt() @ axes.T


@torch.no_grad()
def digit_scores(reader: DigitReader, samples: Tensor, real: Tensor) -> dict[str, float]:
    """Return what the samples are worth, by the numbers above: ``recognised``, ``digits`` and ``frechet``.

    Args:
        reader: A trained one, in evaluation mode.
        samples: In [-1, 1], shape (n, 1, 8, 8).
        real: Images of digits to compare with, of the same kind.
    """
    features, others = (reader.features(images) for images in (samples, real))
    chances = F.softmax(reader.head(features), dim=1)
    shares = torch.bincount(chances.argmax(1), minlength=10) / len(samples)
    return {
        "recognised": (chances.amax(1) > 0.9).float().mean().item(),
        "digits": float((shares >= 0.02).sum()),
        "frechet": frechet_distance(features, others),
    }


class DigitsGAN(GANMixin, LightningModule):
    """The reference generator and critic, which learn digits; validation logs their scores.

    Args:
        reader: What scores samples; it is not trained, and in no checkpoint. ``None`` for no scores.
        width: Of both networks.
    """

    latent = Latent(16)
    penalties = GradientPenalty(1.0, one_sided=True)
    generator_optimizer = Player("Adam", lr=2e-3, options={"betas": (0.0, 0.99)})
    critic_optimizer = Player("Adam", lr=4e-3, options={"betas": (0.0, 0.99)})

    def __init__(self, reader: DigitReader | None = None, *, width: int = 16) -> None:
        """Build the networks with torch's own initial weights."""
        super().__init__()
        self.generator, self.critic = Generator(latent=self.latent.size, width=width), Critic(width=width)
        self._reader = (reader,)  # in a tuple, so that it is no part of the module

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        reader, real = self._reader[0], batch[0]
        if reader is None or batch_idx > 0:
            return
        z = self.latent.draw(_SEEN, torch.Generator().manual_seed(0)).to(real)
        for name, value in digit_scores(reader.to(real.device), self(z), real).items():
            self.log(name, value, batch_size=len(real))
