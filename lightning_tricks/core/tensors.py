"""What is done to weights: arithmetic on lists of tensors, by torch's foreach kernels.

A trailing underscore means that the first argument is changed in place. Lists that are passed together
have equal lengths, and tensors at the same index equal shapes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

__all__ = ["Model", "copy_", "lerp_", "local", "swap_", "weighted_sum"]

Model = Mapping[str, Tensor]
"""Tensors by name, such as a state dict."""


def local(tensor: Tensor) -> Tensor:
    """Return the part of ``tensor`` that this process holds, in the same memory; all of it if not sharded."""
    if not isinstance(tensor, DTensor):
        return tensor
    with torch.no_grad():  # else this would be a step of the graph
        part: Tensor = tensor.to_local()
    return part


@torch.no_grad()
def lerp_(targets: list[Tensor], sources: list[Tensor], weight: float | Tensor) -> None:
    """Move ``targets`` towards ``sources`` by ``weight``: target + weight (source - target).

    Args:
        targets: Changed in place; all of one type, which may be wider than that of ``sources``.
        sources: Where to move; all of one type.
        weight: Share of the way, usually in [0, 1]; a 0-d tensor stays on its device.
    """
    if not targets:
        return
    if isinstance(weight, Tensor):
        for target, source in zip(targets, sources, strict=True):
            target.lerp_(source.to(target), weight.to(target))
    elif targets[0].dtype == sources[0].dtype:
        torch._foreach_lerp_(targets, sources, weight)
    elif targets[0].device.type == "cpu":
        # lerp refuses a narrower source. One tensor at a time stays in the cache between both passes.
        for target, source in zip(targets, sources, strict=True):
            target.lerp_(source.to(target), weight)
    else:
        # Multiply and add promote it entry by entry, in few launches.
        torch._foreach_mul_(targets, 1.0 - weight)
        torch._foreach_add_(targets, sources, alpha=weight)


@torch.no_grad()
def copy_(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy the values of ``sources`` into ``targets``, converting type and device."""
    if targets:
        torch._foreach_copy_(targets, sources)


@torch.no_grad()
def swap_(first: list[Tensor], second: list[Tensor]) -> None:
    """Exchange the values of two lists of tensors of equal types, with one tensor's worth of scratch."""
    for one, other in zip(first, second, strict=True):
        scratch = one.clone()
        one.copy_(other)
        other.copy_(scratch)


@torch.no_grad()
def weighted_sum(tensors: list[Tensor], weights: list[float]) -> Tensor:
    """Return the sum of ``weights[i] * tensors[i]``, computed in at least float32 and rounded once.

    Args:
        tensors: At least one; floating or complex, all of one shape and type.
        weights: One number for each.
    """
    wide = torch.promote_types(tensors[0].dtype, torch.float32)
    total = torch.zeros_like(tensors[0], dtype=wide)
    for tensor, weight in zip(tensors, weights, strict=True):
        total.add_(tensor.to(total), alpha=weight)
    return total.to(tensors[0].dtype)
