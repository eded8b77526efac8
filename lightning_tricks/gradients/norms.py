"""Limits on gradients and on their norm as one vector: torch's own mathematics, to the bit.

    value   g_i <- min(max(g_i, -max_value), max_value)
    norm    g <- g min(1, max_norm / (||g||_p + 1e-6)),    all gradients as one vector

A trailing underscore means that gradients are changed in place.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from lightning_tricks.core.gradients import Gradients
from lightning_tricks.core.norms import total_norm

__all__ = ["clip_", "within"]


@torch.no_grad()
def clip_(
    gradients: list[Gradients],
    norm: Tensor,
    *,
    max_norm: float | Tensor | None,
    max_value: float | None,
    norm_type: float,
    value: float | None = None,
) -> bool | Tensor:
    """Clip ``gradients`` in place, by value first and then by their total norm.

    Args:
        gradients: At least one list.
        norm: Their :func:`total_norm` as they are.
        max_norm: Largest norm allowed, at least 0, on the device of ``norm``; ``None`` to leave norms alone.
        max_value: Largest magnitude of an entry allowed, at least 0; ``None`` to leave entries alone.
        norm_type: Order of the norm, above 0; infinity for the largest magnitude.
        value: The norm, where the host knows it.

    Returns:
        Whether anything was clipped, a 0-d bool tensor if only the device knows; ``False`` without any limit.
    """
    clipped: bool | Tensor = False
    if max_value is not None:
        clipped = total_norm(gradients, math.inf) > max_value
        for tensors, _ in gradients:
            if max_value < torch.finfo(tensors[0].dtype).max:  # torch refuses a bound that is beyond the type
                torch._foreach_clamp_min_(tensors, -max_value)
                torch._foreach_clamp_max_(tensors, max_value)
        if max_norm is not None:
            norm, value = total_norm(gradients, norm_type), None
    if max_norm is not None:
        over, factor = _over(norm, max_norm, value)
        for tensors, _ in gradients:
            torch._foreach_mul_(tensors, factor.to(tensors[0].device))
        clipped = over if clipped is False else over | clipped
    return clipped


def _over(norm: Tensor, limit: float | Tensor, value: float | None) -> tuple[bool | Tensor, Tensor]:
    """Return whether ``norm`` is above ``limit``, and what gradients are to be multiplied by."""
    if value is None or isinstance(limit, Tensor) or not (norm.is_cpu and norm.dtype is torch.float32):
        # What torch makes of max_norm / (norm + 1e-6), in fewer tensors.
        return norm > limit, (norm + 1e-6).reciprocal_().mul_(limit).clamp_(max=1.0)
    # The same with numbers, which take a tenth of the time that small tensors take.
    with np.errstate(all="ignore"):
        wide, most = np.float32(value), np.float32(limit)
        factor = min(np.float32(1) / (wide + np.float32(1e-6)) * most, 1.0)
    return bool(wide > most), torch.tensor(factor, dtype=torch.float32)


def within(value: float | None, limit: float | Tensor | None, dtype: torch.dtype = torch.float32) -> bool:
    """Return whether the host knows that a norm lies so clearly under ``limit`` that clipping is no work.

    By a margin above what rounding could make of torch's own factor, which would else be below 1; in types of
    ``dtype`` with 16 bits it could make much.
    """
    if value is None or limit is None or isinstance(limit, Tensor) or dtype.itemsize < 4:
        return False
    return (value + 1e-6) * (1 + 1e-6) <= limit
