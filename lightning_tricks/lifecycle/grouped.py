"""Shadows beside their live tensors, in lists that torch's kernels for many tensors take at once."""

from __future__ import annotations

from collections.abc import Iterable
from operator import getitem, is_
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lightning_tricks.core.tensors import local
from lightning_tricks.lifecycle.slots import Slot

__all__ = ["Group", "copies_on", "grouped"]


class Group(NamedTuple):
    """Shadows of one type and device, because those kernels fall back to loops for mixed ones.

    Attributes:
        owners: Where their live tensors are, and by which ``keys``.
        held: What was found there.
        sharded: Whether this process holds but a part of each.
        apart: Whether they are on another device.
    """

    shadows: list[Tensor]
    owners: list[dict[str, Any]]
    keys: list[str]
    held: list[Tensor]
    sharded: bool
    apart: bool

    def stands(self) -> bool:
        """Return whether no live tensor was replaced since."""
        return all(map(is_, self.held, map(getitem, self.owners, self.keys)))

    def alike(self, other: Group) -> bool:
        """Return whether both shadow the same tensors, in shadows of one type on one device."""
        one, two = self.shadows[0], other.shadows[0]
        kinds = one.dtype is two.dtype and one.device == two.device
        return kinds and len(self.held) == len(other.held) and all(map(is_, self.held, other.held))

    def live(self) -> list[Tensor]:
        """Return the live tensors, as copies if they are on another device than the shadows."""
        # Not detached, which takes longer than all else here: whoever changes them does it without graph.
        live = [local(tensor) for tensor in self.held] if self.sharded else self.held
        return copies_on(self.shadows[0].device, live) if self.apart else live


def copies_on(device: torch.device, tensors: list[Tensor]) -> list[Tensor]:
    """Return copies of tensors that are elsewhere, by one wait for each GPU that they come from."""
    if device.type != "cpu":
        return [tensor.to(device) for tensor in tensors]
    # Into pinned memory, which torch takes for this and keeps for the next time.
    copies = [tensor.to(device, non_blocking=tensor.is_cuda) for tensor in tensors]
    for source in {tensor.device for tensor in tensors if tensor.is_cuda}:
        torch.cuda.current_stream(source).synchronize()
    return copies


def grouped(pairs: Iterable[tuple[Slot, Tensor]]) -> list[Group]:
    """Return groups of slots with their shadows."""
    groups: dict[object, Group] = {}
    for slot, shadow in pairs:
        held = slot.held
        sharded, apart = isinstance(held, DTensor), shadow.device != slot.tensor.device
        kind = shadow.dtype, held.dtype, shadow.device, sharded, apart
        group = groups.setdefault(kind, Group([], [], [], [], sharded, apart))
        group.shadows.append(shadow)
        group.owners.append(slot.owner)
        group.keys.append(slot.key)
        group.held.append(held)
    return list(groups.values())
