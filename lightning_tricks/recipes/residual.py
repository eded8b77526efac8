"""A small residual convolution network, the reference model of examples, benchmarks and tests.

    block     y = relu(f(x) + s(x)),    f = norm . conv . dropout . relu . norm . conv
    shortcut  s(x) = x                        where the shape stays
              s(x) = conv1x1(x)               where it changes, shortcut "projection"
              s(x) = x[::stride], 0, ..., 0   where it changes, shortcut "padding": new channels are 0

BatchNorm comes before each activation and dropout after it. The first block of every group but the first
halves height and width.

References: He et al., "Deep Residual Learning for Image Recognition", 2016,
https://arxiv.org/abs/1512.03385 (options A and B of the shortcut); Zagoruyko and Komodakis, "Wide
Residual Networks", 2016, https://arxiv.org/abs/1605.07146 (dropout between the convolutions).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_tricks.core import checks

__all__ = ["ResidualBlock", "ResidualNet", "ZeroPadding"]


class ZeroPadding(nn.Module):
    """The shortcut without weights: every ``stride``-th pixel, and zeros for ``new`` more channels."""

    def __init__(self, new: int, stride: int) -> None:
        """Take the number of channels to add, at least 0, and the step between pixels, at least 1."""
        super().__init__()
        self.new, self.stride = checks.whole("new", new), checks.whole("stride", stride, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map shape (n, c, h, w) to (n, c + new, ceil(h / stride), ceil(w / stride))."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut around them (equation above)."""

    def __init__(self, old: int, new: int, *, stride: int, dropout: float, shortcut: str) -> None:
        """Build a block from ``old`` to ``new`` channels."""
        super().__init__()
        self.first = nn.Sequential(*_convolution(old, new, stride), nn.ReLU(), nn.Dropout(dropout))
        self.second = nn.Sequential(*_convolution(new, new))
        self.shortcut: nn.Module = nn.Identity()
        if (old, stride) != (new, 1):
            projection = nn.Conv2d(old, new, 1, stride, bias=False)
            self.shortcut = projection if shortcut == "projection" else ZeroPadding(new - old, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map shape (n, old, h, w) to (n, new, ceil(h / stride), ceil(w / stride))."""
        return torch.relu(self.second(self.first(x)) + self.shortcut(x))


class ResidualNet(nn.Module):
    """A stem, groups of residual blocks, and a linear head on the mean over pixels.

    Its parts in the order of data, as name patterns: ``stem``, ``groups.0``, ``groups.1``, ..., ``head``.

    Args:
        channels: Of the images.
        classes: Number of logits.
        widths: Channels of each group; not falling where ``shortcut`` is ``"padding"``.
        blocks: Residual blocks per group.
        dropout: Probability in [0, 1).
        shortcut: ``"projection"`` or ``"padding"`` where a block changes the shape.

    Example:
        >>> ResidualNet(widths=(4, 8))(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        classes: int = 10,
        widths: Sequence[int] = (32, 64, 128),
        blocks: int = 1,
        dropout: float = 0.1,
        shortcut: Literal["projection", "padding"] = "projection",
    ) -> None:
        """Build the network with torch's own initial weights."""
        super().__init__()
        checks.in_range("dropout", dropout, 0.0, 1.0, open_high=True)
        checks.one_of("shortcut", shortcut, ("projection", "padding"))
        for name, count in {"channels": channels, "classes": classes, "blocks": blocks}.items():
            checks.whole(name, count, 1)
        if not [checks.whole("each of widths", width, 1) for width in widths]:
            raise ValueError(f"widths must name at least one group, got {widths!r}")
        self.stem = nn.Sequential(*_convolution(channels, widths[0]), nn.ReLU(), nn.Dropout(dropout))
        self.groups = nn.Sequential()
        old = widths[0]
        for new in widths:
            group = nn.Sequential()
            for _ in range(blocks):
                stride = 2 if len(self.groups) > 0 and len(group) == 0 else 1
                group.append(ResidualBlock(old, new, stride=stride, dropout=dropout, shortcut=shortcut))
                old = new
            self.groups.append(group)
        self.head = nn.Linear(old, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, shape (n, classes), of ``images``, shape (n, channels, height, width)."""
        logits: Tensor = self.head(self.groups(self.stem(images)).mean(dim=(2, 3)))
        return logits


def _convolution(old: int, new: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return nn.Conv2d(old, new, 3, stride, 1, bias=False), nn.BatchNorm2d(new)
