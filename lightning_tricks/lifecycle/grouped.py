"""Shadows beside their live tensors, in lists that torch's kernels for many tensors take at once."""

from __future__ import annotations

from collections.abc import Iterable
from operator import getitem, is_
from typing import Any, NamedTuple

from torch import Tensor
from torch.distributed.tensor import DTensor

from lightning_tricks.core.tensors import local
from lightning_tricks.lifecycle.slots import Slot

__all__ = ["Group", "grouped"]


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

    def live(self) -> list[Tensor]:
        """Return the live tensors, as copies if they are on another device than the shadows."""
        # Not detached, which takes longer than all else here: whoever changes them does it without graph.
        live = [local(tensor) for tensor in self.held] if self.sharded else self.held
        return [tensor.to(self.shadows[0].device) for tensor in live] if self.apart else live


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
