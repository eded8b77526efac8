"""The norm of many gradients as one vector, and limits on it: torch's own mathematics, to the bit.

    value   g_i <- min(max(g_i, -max_value), max_value)
    norm    g <- g min(1, max_norm / (||g||_p + 1e-6)),    all gradients as one vector

Where processes hold parts of the gradients, the vector is all of them, and every process gets the same norm.
A trailing underscore means that gradients are changed in place.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_tricks.core.gradients import Gradients, Groups

__all__ = ["clip_", "total_norm", "within"]


@torch.no_grad()
def total_norm(gradients: list[Gradients], norm_type: float) -> Tensor:
    """Return the norm of all entries of ``gradients``, a 0-d tensor on the device of the first.

    Args:
        gradients: At least one list. Those in float16 are measured as float32, in which no norm overflows.
        norm_type: Order of the norm, above 0; infinity for the largest magnitude.
    """
    parts: dict[Groups, list[Tensor]] = {}
    for tensors, groups in gradients:
        # Of no entries there is no largest.
        filled = [grad for grad in tensors if grad.numel()] or [tensors[0].new_zeros(1)]
        wide = [grad.float() for grad in filled] if filled[0].dtype == torch.float16 else filled
        parts.setdefault(groups, []).extend(torch._foreach_norm(wide, norm_type))
    device = gradients[0].tensors[0].device
    if len(gradients) > 1:  # perhaps of a model that is laid out over several devices
        parts = {groups: [norm.to(device) for norm in own] for groups, own in parts.items()}
    norms = [_across(_joined(own, norm_type), groups, norm_type) for groups, own in parts.items()]
    return norms[0] if len(norms) == 1 else _joined(norms, norm_type)


def _joined(norms: list[Tensor], norm_type: float) -> Tensor:
    joined: Tensor = torch.linalg.vector_norm(torch.stack(norms), norm_type)
    return joined


def _across(norm: Tensor, groups: Groups, norm_type: float) -> Tensor:
    """Return the norm over all processes of ``groups``, each with its own ``norm``."""
    if not groups:
        return norm
    largest = norm_type == math.inf
    total = norm if largest else norm.to(torch.promote_types(norm.dtype, torch.float32)) ** norm_type
    for group in groups:
        dist.all_reduce(total, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM, group=group)
    return total if largest else total ** (1 / norm_type)


@torch.no_grad()
def clip_(
    gradients: list[Gradients],
    norm: Tensor,
    *,
    max_norm: float | Tensor | None,
    max_value: float | None,
    norm_type: float,
) -> bool | Tensor:
    """Clip ``gradients`` in place, by value first and then by their total norm.

    Args:
        gradients: At least one list.
        norm: Their :func:`total_norm` as they are.
        max_norm: Largest norm allowed, at least 0, on the device of ``norm``; ``None`` to leave norms alone.
        max_value: Largest magnitude of an entry allowed, at least 0; ``None`` to leave entries alone.
        norm_type: Order of the norm, above 0; infinity for the largest magnitude.

    Returns:
        Whether anything was clipped, a 0-d bool tensor; ``False`` without any limit.
    """
    clipped: bool | Tensor = False
    if max_value is not None:
        clipped = total_norm(gradients, math.inf) > max_value
        for tensors, _ in gradients:
            if max_value < torch.finfo(tensors[0].dtype).max:  # torch refuses a bound that is beyond the type
                torch._foreach_clamp_min_(tensors, -max_value)
                torch._foreach_clamp_max_(tensors, max_value)
        if max_norm is not None:
            norm = total_norm(gradients, norm_type)
    if max_norm is not None:
        # What torch makes of max_norm / (norm + 1e-6), in fewer tensors.
        factor = (norm + 1e-6).reciprocal_().mul_(max_norm).clamp_(max=1.0)
        for tensors, _ in gradients:
            torch._foreach_mul_(tensors, factor.to(tensors[0].device))
        over = norm > max_norm
        clipped = over if clipped is False else over | clipped
    return clipped


def within(value: float | None, limit: float | Tensor | None) -> bool:
    """Return whether the host knows that a norm lies so clearly under ``limit`` that clipping is no work.

    By a margin above what rounding could make of torch's own factor, which would else be below 1.
    """
    if value is None or limit is None or isinstance(limit, Tensor):
        return False
    return value * (1 + 1e-6) + 1e-6 <= limit
