"""A small generator and critic of 8x8 images, the reference models for adversarial training.

    generator   z -> linear, 2x2 -> up, 4x4 -> up, 8x8 -> conv -> tanh,    up = leaky . norm . upsample
    critic      8x8 -> strided conv, 4x4 -> strided conv, 2x2 -> linear -> score,    leaky after each conv

Images lie in [-1, 1]. The critic has no normalisation: BatchNorm would tie the samples of a batch to one
another, which a penalty on the gradient of each sample forbids.

References: Radford et al., "Unsupervised Representation Learning with Deep Convolutional GANs", 2016,
https://arxiv.org/abs/1511.06434, section 3; Gulrajani et al., "Improved Training of Wasserstein GANs",
2017, https://arxiv.org/abs/1704.00028, section 4; Shi et al., 2016, https://arxiv.org/abs/1609.05158.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lightning_tricks.core import checks
from lightning_tricks.objectives.latent import Latent

__all__ = ["Critic", "Generator"]

_SLOPE = 0.2  # of LeakyReLU below 0, as in DCGAN


class Generator(nn.Module):
    """Latent points to images in [-1, 1].

    Args:
        latent: Dimensions of latent space.
        channels: Of the images.
        width: Channels at 8x8 pixels; at 4x4 twice as many, at 2x2 four times.
        law: Of :meth:`sample`'s latent points, ``"gaussian"`` or ``"sphere"``.
        upsampling: ``"shuffle"`` (a convolution and PixelShuffle) or ``"transposed"`` convolution.

    Example:
        >>> Generator(latent=4, width=8)(torch.zeros(2, 4)).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        *,
        latent: int = 16,
        channels: int = 1,
        width: int = 16,
        law: Literal["gaussian", "sphere"] = "gaussian",
        upsampling: Literal["shuffle", "transposed"] = "shuffle",
    ) -> None:
        """Build the network with torch's own initial weights."""
        super().__init__()
        checks.whole("channels", channels, 1)
        self.latent = Latent(checks.whole("latent", latent, 1), law=law)
        self.width = checks.whole("width", width, 1)
        checks.one_of("upsampling", upsampling, ("shuffle", "transposed"))
        self.start = nn.Sequential(
            nn.Linear(latent, 16 * width), nn.Unflatten(1, (4 * width, 2, 2)), nn.LeakyReLU(_SLOPE)
        )
        self.up = nn.Sequential(*(_up(old, old // 2, upsampling) for old in (4 * width, 2 * width)))
        self.head = nn.Sequential(nn.Conv2d(width, channels, 3, padding=1), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        """Map latent points, shape (n, latent), to images, shape (n, channels, 8, 8)."""
        images: Tensor = self.head(self.up(self.start(z)))
        return images

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Return ``count`` images from latent points of its latent space, drawn on the CPU."""
        images: Tensor = self(self.latent.draw(count, generator).to(next(self.parameters())))
        return images


class Critic(nn.Sequential):
    """Images, shape (n, channels, 8, 8), to scores, shape (n,); a probability's logit or Wasserstein's.

    Args:
        channels: Of the images.
        width: Channels at 4x4 pixels; at 2x2 twice as many.
    """

    def __init__(self, *, channels: int = 1, width: int = 16) -> None:
        """Build the network with torch's own initial weights."""
        checks.whole("channels", channels, 1)
        checks.whole("width", width, 1)
        super().__init__(
            *(nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE)),
            *(nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE)),
            *(nn.Flatten(), nn.Linear(8 * width, 1), nn.Flatten(0)),
        )


def _up(old: int, new: int, kind: str) -> nn.Sequential:
    """Return what doubles height and width, from ``old`` to ``new`` channels."""
    upsample: nn.Module = nn.ConvTranspose2d(old, new, 4, stride=2, padding=1)
    if kind == "shuffle":
        upsample = nn.Sequential(nn.Conv2d(old, 4 * new, 3, padding=1), nn.PixelShuffle(2))
    return nn.Sequential(upsample, nn.BatchNorm2d(new), nn.LeakyReLU(_SLOPE))
