"""Labels of real and fake for a critic: soft, noisy, and now and then exchanged.

    real ~ Uniform(0.7, 1.2),    fake ~ Uniform(0, 0.3);    a share of both is exchanged

Each sample gets a label of its own in each step, so that no critic can know it: what it can learn are the
means, and a loss that even the best critic does not get below.

References: Salimans et al., "Improved Techniques for Training GANs", 2016, https://arxiv.org/abs/1606.03498,
section 3.4; Chintala et al., "How to Train a GAN?", 2016, https://github.com/soumith/ganhacks, hint 6, for
the ranges.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch

from lightning_tricks.core import checks

__all__ = ["NoisyLabels"]


@dataclass(frozen=True)
class NoisyLabels:
    """How a critic's labels are drawn, uniformly for each sample.

    Args:
        real: Range of the labels of real samples; the mean at most 1, above which no critic is best. Single
            labels may be above 1, for losses here take logits, not probabilities.
        fake: Range of those of fake samples; the mean at least 0.
        flipped: Share of the samples that get a label of the other kind, in [0, 0.5).

    Example:
        >>> labels = NoisyLabels((0.9, 0.9), fake=(0.0, 0.0))  # one-sided smoothing
        >>> labels.means
        (0.9, 0.0)
    """

    real: tuple[float, float] = (0.7, 1.2)
    _: KW_ONLY
    fake: tuple[float, float] = (0.0, 0.3)
    flipped: float = 0.0

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If one is out of its range.
        """
        for name, ends in (("real", self.real), ("fake", self.fake)):
            if not (isinstance(ends, list | tuple) and len(ends) == 2):
                raise ValueError(f"{name} must be the two ends of a range, got {ends!r}")
            low, high = (checks.finite(name, end) for end in ends)
            if low > high:
                raise ValueError(f"{name} must rise from its lower to its upper end, got {ends!r}")
            object.__setattr__(self, name, (low, high))
        checks.in_range("flipped", self.flipped, 0.0, 0.5, open_high=True)
        real, fake = (sum(ends) / 2 for ends in (self.real, self.fake))
        if not 0.0 <= fake < real <= 1.0:
            raise ValueError(
                "the means of real and fake labels must lie in [0, 1], that of fake below that of real, got "
                f"{real!r} and {fake!r}"
            )

    @property
    def means(self) -> tuple[float, float]:
        """The means of the labels of real and of fake samples, exchanged ones included."""
        real, fake = (sum(ends) / 2 for ends in (self.real, self.fake))
        return real + self.flipped * (fake - real), fake + self.flipped * (real - fake)

    @property
    def variances(self) -> tuple[float, float]:
        """The variances of both, exchanged ones included."""
        (real, fake), share = (sum(ends) / 2 for ends in (self.real, self.fake)), self.flipped
        own, other = ((high - low) ** 2 / 12 for low, high in (self.real, self.fake))
        between = share * (1 - share) * (real - fake) ** 2  # of which kind a label is
        return own + share * (other - own) + between, other + share * (own - other) + between

    def draw(self, count: int, generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return labels for ``count`` real and for ``count`` fake samples, each of shape (count,).

        Drawn on the device of ``generator``.
        """
        device = None if generator is None else generator.device
        shares = torch.rand(2, count, generator=generator, device=device)
        flips = torch.rand(2, count, generator=generator, device=device) < self.flipped
        of_real, of_fake = (low + shares * (high - low) for low, high in (self.real, self.fake))
        real, fake = torch.where(flips, of_fake, of_real), torch.where(flips, of_real, of_fake)
        return real[0], fake[1]
