"""A small convolution and transformer hybrid for images: convolutions find the tokens, attention mixes them.

    tokens = pixels of stem(images),    logits = head . mean . norm . blocks(tokens + positions)

The stem's second convolution halves height and width; each pixel that is left is a token.

References: Xiao et al., "Early Convolutions Help Transformers See Better", 2021,
https://arxiv.org/abs/2106.14881 (convolutions instead of patches); Hassani et al., "Escaping the Big Data
Paradigm with Compact Transformers", 2021, https://arxiv.org/abs/2104.05704 (pooling instead of a class
token, on small images).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lightning_tricks.core import checks
from lightning_tricks.recipes.attention import TransformerBlock, norm_layer

__all__ = ["HybridNet"]


class HybridNet(nn.Module):
    """A convolutional stem, transformer blocks on its pixels, and a linear head on their mean.

    Its parts in the order of data, as name patterns: ``stem``, ``positions``, ``blocks.0``, ..., ``norm``,
    ``head``.

    Args:
        channels: Of the images.
        classes: Number of logits.
        size: Height and width of the images in pixels, even.
        width: Of the tokens' vectors, a multiple of ``heads``.
        blocks: Number of transformer blocks, at least 1.
        heads: Of each block's attention.
        norm: ``"layer"`` or ``"rms"``, of the blocks; the stem has BatchNorm.
        dropout: Of tokens, attention weights and each branch's output, in [0, 1).

    Example:
        >>> HybridNet(width=8)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(  # noqa: PLR0913  # settings
        self,
        *,
        channels: int = 1,
        classes: int = 10,
        size: int = 8,
        width: int = 32,
        blocks: int = 2,
        heads: int = 4,
        norm: Literal["layer", "rms"] = "layer",
        dropout: float = 0.1,
    ) -> None:
        """Build the network with torch's own initial weights; positions begin at 0."""
        super().__init__()
        counts = {"channels": channels, "classes": classes, "width": width, "blocks": blocks}
        for name, count in counts.items():
            checks.whole(name, count, 1)
        if checks.whole("size", size, 2) % 2:
            raise ValueError(f"size must be even, got {size}")
        checks.in_range("dropout", dropout, 0.0, 1.0, open_high=True)
        self.size = size
        self.stem = nn.Sequential(
            *(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, 2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        )
        self.positions = nn.Parameter(torch.zeros((size // 2) ** 2, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(
            *(
                TransformerBlock(width, heads=heads, causal=False, norm=norm, dropout=dropout)
                for _ in range(blocks)
            )
        )
        self.norm = norm_layer(norm, width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, shape (n, classes), of ``images``, shape (n, channels, size, size).

        Raises:
            ValueError: If the images are of another size.
        """
        if images.shape[2:] != (self.size, self.size):
            raise ValueError(f"images must be of {self.size}x{self.size} pixels, got {tuple(images.shape)}")
        # (n, width, size / 2, size / 2) -> (n, tokens, width)
        tokens = self.stem(images).flatten(2).transpose(1, 2)
        x = self.blocks(self.dropout(tokens + self.positions))
        logits: Tensor = self.head(self.norm(x).mean(dim=1))
        return logits
