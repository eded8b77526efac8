"""Samples of a generator as one picture.

Reference: W3C, "Portable Network Graphics (PNG) Specification (Third Edition)", 2025,
https://www.w3.org/TR/png-3/, for the format of the picture.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import KW_ONLY, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_tricks.core import checks

__all__ = ["SampleGrid", "image_grid", "png"]


def image_grid(images: Tensor, *, columns: int, gap: int = 1) -> Tensor:
    """Return ``images`` in rows, with gaps between them, as bytes.

    Args:
        images: In [-1, 1], shape (n, channels, height, width); what lies outside is clipped.
        columns: Images in a row, at least 1; gaps fill the last row.
        gap: Pixels of black between images, at least 0.

    Returns:
        Of type uint8, shape (channels, rows * (height + gap) - gap, columns * (width + gap) - gap).

    Example:
        >>> image_grid(torch.tensor([-1.0, 0.0, 1.0]).reshape(3, 1, 1, 1), columns=2, gap=0)
        tensor([[[  0, 128],
                 [255,   0]]], dtype=torch.uint8)
    """
    count, channels, height, width = images.shape
    pixels = (images.float().clamp(-1.0, 1.0) + 1) * 127.5
    pixels = F.pad(pixels.round().to(torch.uint8), (0, gap, 0, gap))
    rows = -(-count // columns)
    pixels = F.pad(pixels, (0, 0, 0, 0, 0, 0, 0, rows * columns - count))
    table = pixels.reshape(rows, columns, channels, height + gap, width + gap).permute(2, 0, 3, 1, 4)
    joined = table.reshape(channels, rows * (height + gap), columns * (width + gap))
    return joined[:, : joined.shape[1] - gap, : joined.shape[2] - gap]


def png(picture: Tensor) -> bytes:
    """Return ``picture`` as a PNG file.

    Args:
        picture: Of type uint8, shape (1, height, width) for grey or (3, height, width) for colours.
    """
    channels, height, width = picture.shape
    rows = picture.permute(1, 2, 0).reshape(height, width * channels).cpu()
    lines = F.pad(rows, (1, 0)).contiguous().numpy().tobytes()  # each begins with 0: no filter

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@dataclass(frozen=True)
class SampleGrid:
    """A picture of samples at the ends of epochs, always from the same latent points.

    Args:
        count: Samples in the picture, at least 1.
        columns: Samples in a row, at least 1.
        every_n_epochs: Distance of two pictures in epochs, at least 1.
        folder: Where to write PNG files, ``epoch-0000.png`` and so on; ``None`` for only where a logger takes
            no pictures, beside what it writes.
        seed: Of the latent points, at least 0.
    """

    count: int = 64
    _: KW_ONLY
    columns: int = 8
    every_n_epochs: int = 1
    folder: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        for name in ("count", "columns", "every_n_epochs"):
            checks.whole(name, getattr(self, name), 1)
        checks.whole("seed", self.seed)
        if self.folder is not None:
            checks.text("folder", self.folder)

    def due(self, epochs: int) -> bool:
        """Return whether there is a picture after so many epochs."""
        return epochs % self.every_n_epochs == 0
