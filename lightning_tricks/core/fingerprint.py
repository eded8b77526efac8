"""A number that tells whether any of some tensors has changed.

    f = sum over tensors of (2 c + 1) * sum over entries of b (b + 1),    modulo 2 ** 64

``b`` are the bits of an entry as a signed integer, ``c`` is the CRC-32 of the tensor's name. Unlike a sum of
floats it is the same to the bit in any order: on any device, and for the parts of tensors added up. It does
not see entries of one tensor change places, and is no help against forgery.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["fingerprint"]

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_PIECE = 1 << 20  # entries at a time, each of which takes 8 bytes for as long


@torch.no_grad()
def fingerprint(tensors: Mapping[str, Tensor], device: torch.device | str = "cpu") -> Tensor:
    """Return the number above as a 0-d integer tensor on ``device``; 0 without any entry.

    Args:
        tensors: Of any shapes and types, on any devices, by name.
        device: Where to add up.

    Example:
        >>> fingerprint({"weight": torch.tensor([1.0, 2.0])}).equal(fingerprint({"weight": torch.ones(2)}))
        False
    """
    total = torch.zeros((), dtype=torch.int64, device=device)
    for name, tensor in tensors.items():
        whole = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        bits = whole.detach().contiguous().view(-1).view(_INTEGERS[whole.element_size()])
        for piece in torch.split(bits, _PIECE):
            wide = piece.to(torch.int64)
            total += (2 * zlib.crc32(name.encode()) + 1) * (wide * (wide + 1)).sum().to(device)
    return total
