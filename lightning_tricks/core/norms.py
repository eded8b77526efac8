"""The norm of many tensors as one vector: torch's own mathematics, to the bit.

Where processes hold parts of the tensors, the vector is all of them, and every process gets the same norm.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_tricks.core.gradients import Gradients, Groups

__all__ = ["relative_distance", "total_norm"]

CHUNK = 2**22
"""Entries of which differences are in memory at once, as far as rows are no longer."""


@torch.no_grad()
def total_norm(gradients: list[Gradients], norm_type: float) -> Tensor:
    """Return the norm of all entries of ``gradients``, a 0-d tensor on the device of the first.

    Args:
        gradients: At least one list. Those in float16 are measured as float32, in which no norm overflows.
        norm_type: Order of the norm, above 0; infinity for the largest magnitude.
    """
    parts: dict[Groups, list[Tensor]] = {}
    for tensors, groups in gradients:
        if norm_type == math.inf:  # of no entries there is no largest
            tensors = [grad for grad in tensors if grad.numel()] or [tensors[0].new_zeros(1)]
        wide = [grad.float() for grad in tensors] if tensors[0].dtype == torch.float16 else tensors
        parts.setdefault(groups, []).extend(torch._foreach_norm(wide, norm_type))
    device = gradients[0].tensors[0].device
    if len(gradients) > 1:  # perhaps of a model that is laid out over several devices
        parts = {groups: [norm.to(device) for norm in own] for groups, own in parts.items()}
    norms = [_across(_joined(own, norm_type), groups, norm_type) for groups, own in parts.items()]
    return norms[0] if len(norms) == 1 else _joined(norms, norm_type)


@torch.no_grad()
def relative_distance(pairs: Iterable[tuple[Tensor, Tensor, Groups]]) -> Tensor:
    """Return |first - second| / |second| of Euclidean norms over all pairs, each set as one vector.

    Args:
        pairs: At least one: two tensors of one shape, the first of the wider type and on any device, and the
            process groups over which both are spread.

    Returns:
        A 0-d tensor on the device of the first pair's second tensor; no full copy is made of any tensor.

    Example:
        >>> relative_distance([(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0]), ())])
        tensor(0.2000)
    """
    apart: dict[Groups, list[Tensor]] = {}
    size: dict[Groups, list[Tensor]] = {}
    for first, second, groups in pairs:
        for one, other in _chunks(first, second):
            wide = other.to(one.dtype)
            apart.setdefault(groups, []).append(torch.linalg.vector_norm(one.to(other.device) - wide))
            size.setdefault(groups, []).append(torch.linalg.vector_norm(wide))
    return _together(apart) / _together(size)


def _chunks(first: Tensor, second: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    if first.numel() <= CHUNK:
        return iter([(first, second)])
    rows = max(1, CHUNK * len(first) // first.numel())
    return zip(torch.split(first, rows), torch.split(second, rows), strict=True)


def _together(norms: dict[Groups, list[Tensor]]) -> Tensor:
    home = next(iter(norms.values()))[0].device
    return total_norm(
        [Gradients([torch.stack([n.to(home) for n in own])], g) for g, own in norms.items()], 2.0
    )


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
