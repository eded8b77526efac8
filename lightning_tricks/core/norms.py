"""The norm of many gradients as one vector: torch's own mathematics, to the bit.

Where processes hold parts of the gradients, the vector is all of them, and every process gets the same norm.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_tricks.core.gradients import Gradients, Groups

__all__ = ["total_norm"]


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
