"""Means over processes, for gradients that no wrapper averages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["average_over_processes_"]


@torch.no_grad()
def average_over_processes_(tensors: Sequence[Tensor]) -> None:
    """Replace each of ``tensors`` by its mean over all processes, by one exchange per type.

    To be called by all of them, with tensors of equal shapes. Where there is one process nothing happens.

    Args:
        tensors: Floating, of any shapes, on the device that the processes exchange from.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
    for own in by_type.values():
        joined = torch.cat([tensor.reshape(-1) for tensor in own])
        dist.all_reduce(joined.div_(dist.get_world_size()))  # divided first, as 16 bits overflow soon
        parts = torch.split(joined, [tensor.numel() for tensor in own])
        for tensor, mean in zip(own, parts, strict=True):
            tensor.copy_(mean.view_as(tensor))
