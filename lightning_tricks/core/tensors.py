"""What is done to weights: arithmetic on lists of tensors, by torch's foreach kernels.

A trailing underscore means that the first argument is changed in place. Lists that are passed together
have equal lengths, and tensors at the same index equal shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

__all__ = ["Model", "alone", "copy_", "holders", "lerp_", "local", "pieces", "swap_"]

Model = Mapping[str, Tensor]
"""Tensors by name, such as a state dict."""

# Of the pieces in which values are exchanged: what stays in a cache, and what fills a GPU.
PIECE_BYTES, GPU_PIECE_BYTES = 2**20, 2**24


def local(tensor: Tensor) -> Tensor:
    """Return the part of ``tensor`` that this process holds, in the same memory; all of it if not sharded."""
    if type(tensor) is Tensor or type(tensor) is nn.Parameter:
        return tensor
    # Imported here, because it takes as long to load as torch itself, and few runs have such tensors.
    from torch.distributed.tensor import DTensor

    if not isinstance(tensor, DTensor):
        return tensor
    with torch.no_grad():  # else this would be a step of the graph
        part: Tensor = tensor.to_local()
    return part


@torch.no_grad()
def lerp_(targets: list[Tensor], sources: list[Tensor], weight: float | Tensor | list[float]) -> None:
    """Move ``targets`` towards ``sources`` by ``weight``: target + weight (source - target).

    Args:
        targets: Changed in place; all of one type, which may be wider than that of ``sources``.
        sources: Where to move; all of one type.
        weight: Share of the way, usually in [0, 1]; a 0-d tensor stays on its device. On a CPU also a list of
            one for each target.
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
        weights = weight if isinstance(weight, list) else [weight] * len(targets)
        for target, source, share in zip(targets, sources, weights, strict=True):
            target.lerp_(source.to(target), share)
    else:
        assert not isinstance(weight, list)
        # Multiply and add promote it entry by entry, in few launches.
        torch._foreach_mul_(targets, 1.0 - weight)
        torch._foreach_add_(targets, sources, alpha=weight)


@torch.no_grad()
def copy_(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy the values of ``sources`` into ``targets``, converting type and device."""
    if targets:
        torch._foreach_copy_(targets, sources)


def holders(tensor: Tensor) -> int:
    """Return how many tensors, views included, hold the memory of ``tensor``; it is one of them."""
    # One use of the memory is that of this object, whose life older versions of torch end with its name.
    storage = tensor.untyped_storage()
    return torch._C._storage_Use_Count(storage._cdata) - 1


def alone(tensor: Tensor) -> bool:
    """Return whether ``tensor`` can be given other memory with nobody left behind who looks at the old.

    It is plain and on a CPU, and neither another tensor nor another process holds its memory. Of memory
    elsewhere it cannot be known: graphs that were captured on a GPU hold addresses alone.
    """
    if not (tensor.is_cpu and type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided):
        return False
    return holders(tensor) == 1 and not tensor.untyped_storage().is_shared()


def pieces(first: Tensor, second: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return views of two tensors of one shape, of at most 16 MiB each.

    Only where one entry along the longest dimension is more, it is that much.
    """
    limit = PIECE_BYTES if first.is_cpu and second.is_cpu else GPU_PIECE_BYTES
    if first.nbytes <= limit:
        return [(first, second)]
    longest = max(first.shape)
    count, dim = min(longest, -(-first.nbytes // limit)), first.shape.index(longest)
    return list(zip(first.tensor_split(count, dim), second.tensor_split(count, dim), strict=True))


@torch.no_grad()
def swap_(first: Tensor, second: Tensor, note: Callable[[], object] = lambda: None) -> None:
    """Exchange the values of two tensors of one type, with a copy of ``first`` as scratch.

    Args:
        first: On any device.
        second: Of the same shape; on any device.
        note: Called before anything is changed. What interrupts before that leaves both as they were, and
            what interrupts later comes out when they are exchanged.
    """
    scratch = first.clone()
    note()
    try:
        first.copy_(second)
    finally:
        second.copy_(scratch)
