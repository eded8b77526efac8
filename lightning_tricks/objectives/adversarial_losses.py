"""What a critic and a generator minimise against each other.

                      critic                                              generator
    NonSaturating     E[b(D(x), r)] + E[b(D(G(z)), f)]                    E[b(D(G(z)), 1)]
    Hinge             E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))]        -E[D(G(z))]
    LeastSquares      1/2 E[(D(x) - r)^2] + 1/2 E[(D(G(z)) - f)^2]        1/2 E[(D(G(z)) - 1)^2]
    Wasserstein       E[D(G(z))] - E[D(x)]                                -E[D(G(z))]

with ``b(s, t) = log(1 + e^s) - t s``, the cross entropy in nats of a score ``s``, which is a logit, and a
label ``t``: 1 or ``r`` for real samples, 0 or ``f`` for fake ones. The generator has its fakes labelled real
(inverted labels), which does not saturate where the critic wins.

References: Goodfellow et al., "Generative Adversarial Nets", 2014, https://arxiv.org/abs/1406.2661, section
3; Lim and Ye, "Geometric GAN", 2017, https://arxiv.org/abs/1705.02894; Mao et al., "Least Squares Generative
Adversarial Networks", 2017, https://arxiv.org/abs/1611.04076, equations 2 and 9; Arjovsky et al.,
"Wasserstein GAN", 2017, https://arxiv.org/abs/1701.07875, algorithm 1.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_tricks.objectives.adversarial_labels import NoisyLabels

__all__ = ["AdversarialLoss", "Hinge", "LeastSquares", "NonSaturating", "Wasserstein", "binary_entropy"]


def binary_entropy(probability: float) -> float:
    """Return the entropy in nats of a choice of two: the least cross entropy with a label of this mean.

    Example:
        >>> round(binary_entropy(0.95) + binary_entropy(0.15), 2)  # of labels in [0.7, 1.2] and [0, 0.3]
        0.62
    """
    return -sum(p * math.log(p) for p in (probability, 1 - probability) if p > 0)


class AdversarialLoss(ABC):
    """Base of the policies; scores are of shape (n, ...), labels of shape (n,)."""

    takes_labels = False

    @abstractmethod
    def critic(
        self, real: Tensor, fake: Tensor, labels: tuple[Tensor | float, Tensor | float] = (1.0, 0.0)
    ) -> Tensor:
        """Return the critic's loss from the scores of real and of fake samples, with labels of both."""

    @abstractmethod
    def generator(self, fake: Tensor) -> Tensor:
        """Return the generator's loss from the scores of what it made."""

    @abstractmethod
    def floor(self, labels: NoisyLabels | None) -> float | None:
        """Return what the critic's loss cannot stay below with ``labels``; ``None`` if there is no such."""

    def blind(self, labels: NoisyLabels | None) -> float:
        """Return the loss of the best critic that cannot tell fake from real, where there is a floor."""
        raise NotImplementedError  # nobody asks where there is no floor, as with Wasserstein's


@dataclass(frozen=True)
class NonSaturating(AdversarialLoss):
    """Cross entropy, with inverted labels for the generator.

    Example:
        >>> loss, scores = NonSaturating(), torch.tensor([0.0, 0.0])
        >>> loss.critic(scores, scores), loss.generator(scores)  # 2 ln 2 and ln 2
        (tensor(1.3863), tensor(0.6931))
    """

    takes_labels = True

    def critic(
        self, real: Tensor, fake: Tensor, labels: tuple[Tensor | float, Tensor | float] = (1.0, 0.0)
    ) -> Tensor:
        return _cross_entropy(real, labels[0]) + _cross_entropy(fake, labels[1])

    def generator(self, fake: Tensor) -> Tensor:
        return _cross_entropy(fake, 1.0)

    def floor(self, labels: NoisyLabels | None) -> float:
        return sum(binary_entropy(mean) for mean in _means(labels))

    def blind(self, labels: NoisyLabels | None) -> float:
        return 2 * binary_entropy(sum(_means(labels)) / 2)


@dataclass(frozen=True)
class Hinge(AdversarialLoss):
    """Margins: what is told apart by more than 1 gives the critic no gradient.

    Example:
        >>> Hinge().critic(torch.tensor([0.5, 3.0]), torch.tensor([-2.0, 0.0]))
        tensor(0.7500)
    """

    def critic(
        self, real: Tensor, fake: Tensor, labels: tuple[Tensor | float, Tensor | float] = (1.0, 0.0)
    ) -> Tensor:
        return F.relu(1 - _wide(real)).mean() + F.relu(1 + _wide(fake)).mean()

    def generator(self, fake: Tensor) -> Tensor:
        return -_wide(fake).mean()

    def floor(self, labels: NoisyLabels | None) -> float:
        return 0.0

    def blind(self, labels: NoisyLabels | None) -> float:
        return 2.0


@dataclass(frozen=True)
class LeastSquares(AdversarialLoss):
    """Squared distance of scores from labels, which pulls fakes that are far on the right side, too.

    Example:
        >>> LeastSquares().critic(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]))
        tensor(1.2500)
    """

    takes_labels = True

    def critic(
        self, real: Tensor, fake: Tensor, labels: tuple[Tensor | float, Tensor | float] = (1.0, 0.0)
    ) -> Tensor:
        return _half_square(real, labels[0]) + _half_square(fake, labels[1])

    def generator(self, fake: Tensor) -> Tensor:
        return _half_square(fake, 1.0)

    def floor(self, labels: NoisyLabels | None) -> float:
        return 0.0 if labels is None else sum(labels.variances) / 2

    def blind(self, labels: NoisyLabels | None) -> float:
        real, fake = _means(labels)
        return self.floor(labels) + (real - fake) ** 2 / 4


@dataclass(frozen=True)
class Wasserstein(AdversarialLoss):
    """The difference of mean scores, for a critic that a penalty, clipping or its norm keeps Lipschitz.

    Example:
        >>> Wasserstein().critic(torch.tensor([2.0, 4.0]), torch.tensor([1.0, 1.0]))
        tensor(-2.)
    """

    def critic(
        self, real: Tensor, fake: Tensor, labels: tuple[Tensor | float, Tensor | float] = (1.0, 0.0)
    ) -> Tensor:
        return _wide(fake).mean() - _wide(real).mean()

    def generator(self, fake: Tensor) -> Tensor:
        return -_wide(fake).mean()

    def floor(self, labels: NoisyLabels | None) -> None:
        return None


def _means(labels: NoisyLabels | None) -> tuple[float, float]:
    return (1.0, 0.0) if labels is None else labels.means


def _shaped(labels: Tensor | float, scores: Tensor) -> Tensor:
    """Return the label of each score: those of a sample, which may have several scores, are equal."""
    if not isinstance(labels, Tensor):
        return torch.full_like(scores, labels)
    return labels.to(scores).reshape(-1, *[1] * (scores.ndim - 1)).expand_as(scores)


def _cross_entropy(scores: Tensor, labels: Tensor | float) -> Tensor:
    scores = _wide(scores)
    return F.binary_cross_entropy_with_logits(scores, _shaped(labels, scores))


def _half_square(scores: Tensor, labels: Tensor | float) -> Tensor:
    scores = _wide(scores)
    return (scores - _shaped(labels, scores)).square().mean() / 2


def _wide(scores: Tensor) -> Tensor:
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
