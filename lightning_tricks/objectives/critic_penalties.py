"""Terms beside a critic's loss that keep its slope in bounds, sample by sample.

    GradientPenalty    weight E[(|dD/dx| - target)^2]    at x = e real + (1 - e) fake, e ~ Uniform(0, 1)
      one-sided        weight E[max(0, |dD/dx| - target)^2]
    R1, R2             weight / 2 E[|dD/dx|^2]           at real samples, at fake ones

|.| is the Euclidean norm over all entries of one sample. A lazy term is computed at every k-th step of the
critic and counts k times.

References: Gulrajani et al., "Improved Training of Wasserstein GANs", 2017, https://arxiv.org/abs/1704.00028,
equation 3; Petzka et al., "On the Regularization of Wasserstein GANs", 2018,
https://arxiv.org/abs/1709.08894, equation 8, for one-sided; Mescheder et al., "Which Training Methods for
GANs do actually Converge?", 2018, https://arxiv.org/abs/1801.04406, equations 9 and 10; Karras et al.,
"Analyzing and Improving the Image Quality of StyleGAN", 2020, https://arxiv.org/abs/1912.04958, appendix B,
for lazy ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_tricks.core import checks

__all__ = [
    "R1",
    "R2",
    "CriticPenalty",
    "GradientPenalty",
    "batch_norms",
    "between",
    "clip_weights_",
    "slopes",
]

Judge = Callable[[Tensor], Tensor]
"""Samples, shape (n, ...), to scores, shape (n, ...), each of its own sample alone."""


def slopes(judge: Judge, samples: Tensor) -> Tensor:
    """Return the norm of the gradient of each sample's score by the sample, shape (n,).

    It has a gradient itself, and 0 where the slope is 0. Computed without autocast, in which it overflows.

    Args:
        judge: The critic.
        samples: Of shape (n, ...); no gradient flows into them.

    Example:
        >>> slopes(lambda x: 3 * x[:, 0] + 4 * x[:, 1], torch.zeros(2, 2))
        tensor([5., 5.])
    """
    with torch.enable_grad(), torch.autocast(samples.device.type, enabled=False):
        points = samples.detach().requires_grad_()
        (gradients,) = torch.autograd.grad(judge(points).sum(), points, create_graph=True)
        wide = gradients.to(torch.promote_types(gradients.dtype, torch.float32))
        norms: Tensor = torch.linalg.vector_norm(wide.flatten(1), dim=1)
        return norms


def between(real: Tensor, fake: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return a point on the line between each real sample and the fake one in its place, by a uniform law.

    Each sample has a draw of its own, made on the device of ``generator``.
    """
    device = None if generator is None else generator.device
    share = torch.rand(len(real), generator=generator, device=device).to(real)
    return torch.lerp(fake, real, share.reshape(-1, *[1] * (real.ndim - 1)))


@torch.no_grad()
def clip_weights_(parameters: Iterable[Tensor], *, limit: float) -> None:
    """Clip each entry of ``parameters`` to [-limit, limit], in place.

    Reference: Arjovsky et al., "Wasserstein GAN", 2017, https://arxiv.org/abs/1701.07875, algorithm 1.
    """
    for parameter in parameters:
        parameter.clamp_(-limit, limit)


def batch_norms(module: nn.Module) -> list[str]:
    """Return the names of the BatchNorm layers in ``module``."""
    return [name for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)]


@dataclass(frozen=True)
class CriticPenalty(ABC):
    """Base of the policies.

    Args:
        weight: Of the term, above 0.
        every: It is computed at every so many steps of the critic, and counts as often; at least 1.
    """

    weight: float = 10.0
    _: KW_ONLY
    every: int = 1

    def __post_init__(self) -> None:
        """Check the settings."""
        checks.in_range("weight", self.weight, 0.0, 1e6, open_low=True)
        checks.whole("every", self.every, 1)

    def due(self, step: int) -> bool:
        """Return whether the term is computed at ``step`` of the critic, from 0."""
        return step % self.every == 0

    def term(
        self, judge: Judge, real: Tensor, fake: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the term as it is added to the loss where it is due.

        Args:
            judge: The critic, which scores each sample by itself.
            real: Samples of the data, shape (n, ...).
            fake: Samples of the generator, of the same shape.
            generator: Source of random choices.
        """
        return self.weight * self.every * self.penalty(judge, real, fake, generator)

    @abstractmethod
    def penalty(self, judge: Judge, real: Tensor, fake: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return the penalty for a weight of 1."""


@dataclass(frozen=True)
class GradientPenalty(CriticPenalty):
    """Hold slopes between real and fake samples at 1, as WGAN-GP does.

    Args:
        weight: Of the term, above 0.
        every: It is computed at every so many steps of the critic, and counts as often; at least 1.
        target: The slope, above 0.
        one_sided: Whether smaller slopes are left alone.
    """

    _: KW_ONLY
    target: float = 1.0
    one_sided: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.in_range("target", self.target, 0.0, 1e6, open_low=True)
        checks.flag("one_sided", self.one_sided)

    def penalty(self, judge: Judge, real: Tensor, fake: Tensor, generator: torch.Generator | None) -> Tensor:
        apart = slopes(judge, between(real, fake, generator)) - self.target
        return (apart.clamp(min=0.0) if self.one_sided else apart).square().mean()


@dataclass(frozen=True)
class R1(CriticPenalty):
    """Flatten the critic at real samples; ``every=16`` as in StyleGAN2.

    Args:
        weight: Of the term, above 0.
        every: It is computed at every so many steps of the critic, and counts as often; at least 1.
    """

    def penalty(self, judge: Judge, real: Tensor, fake: Tensor, generator: torch.Generator | None) -> Tensor:
        return slopes(judge, real).square().mean() / 2


@dataclass(frozen=True)
class R2(CriticPenalty):
    """Flatten the critic at fake samples.

    Args:
        weight: Of the term, above 0.
        every: It is computed at every so many steps of the critic, and counts as often; at least 1.
    """

    def penalty(self, judge: Judge, real: Tensor, fake: Tensor, generator: torch.Generator | None) -> Tensor:
        return slopes(judge, fake).square().mean() / 2
