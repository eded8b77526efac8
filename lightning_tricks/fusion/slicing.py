"""How tensors are cut for being fused, and how much memory that takes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lightning_tricks.core import checks
from lightning_tricks.fusion.methods import FusionMethod
from lightning_tricks.fusion.plan import Step

__all__ = ["Budget", "Effort", "Slicing"]

_SLICE = 24 << 20  # Bytes of memory for one slice: mostly stays in the cache, and Python has little to do.
_USUAL = 512 << 20  # Bytes that methods which need whole tensors may take together, or one alone if larger.
_MULTIPLE = 1024  # Entries: cut elsewhere, vectors of numbers would be split, which might round otherwise.


@dataclass(frozen=True)
class Effort:
    """How much a fusion may use.

    Args:
        max_memory: Bytes for the tensors that are worked on, at least a few thousand entries of each model;
            ``None`` for a few slices or, if the method needs tensors whole, a few of those.
        threads: How many slices or tensors are worked on at a time.
    """

    max_memory: int | None = None
    threads: int = 2

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.max_memory is not None:
            checks.whole("max_memory", self.max_memory, 1)
        checks.whole("threads", self.threads, 1)


@dataclass(frozen=True)
class Slicing:
    """How tensors are cut for a method, within the memory that is allowed.

    Attributes:
        entrywise: Whether the method can do with slices.
        copies: Its :attr:`~lightning_tricks.fusion.methods.FusionMethod.wide_copies`.
        effort: What is allowed.
    """

    entrywise: bool
    copies: int | None
    effort: Effort

    @classmethod
    def of(cls, method: FusionMethod, effort: Effort) -> Slicing:
        """Return how tensors are cut for ``method``."""
        return cls(method.entrywise, method.wide_copies, effort)

    def per_entry(self, step: Step) -> int:
        """Return the bytes of memory for one entry: as they are read, and what comes of them."""
        dtype, models = step.stored.dtype, len(step.tensors)
        if step.action != "fuse":
            return dtype.itemsize
        wide = torch.complex128 if dtype.is_complex else torch.float64
        copies = models + 3 if self.copies is None else self.copies
        return models * dtype.itemsize + copies * wide.itemsize

    def entries(self, step: Step) -> int:
        """Return how many entries of the tensors of ``step`` are worked on at a time.

        Raises:
            ValueError: If that is more than is allowed; says how much it must be.
        """
        whole = step.stored.numel
        allowed = self.effort.max_memory
        least = whole
        if all(tensor.sliceable for tensor in step.read) and (self.entrywise or step.action != "fuse"):
            share = _SLICE if allowed is None else min(_SLICE, allowed // self.effort.threads)
            least = min(whole, _MULTIPLE)
            whole = min(whole, max(_MULTIPLE, share // self.per_entry(step) // _MULTIPLE * _MULTIPLE))
        if allowed is not None and whole * self.per_entry(step) > allowed:
            raise ValueError(
                f"max_memory must be at least {least * self.per_entry(step)} bytes for {step.names[0]}, of "
                f"which {least} entries of each model are needed at a time, got {allowed}"
            )
        return whole

    def bytes(self, step: Step) -> int:
        """Return how much memory the work on ``step`` needs at a time."""
        return self.entries(step) * self.per_entry(step)

    def memory(self, steps: Sequence[Step]) -> int:
        """Return how much memory the work on all ``steps`` needs at most."""
        needs = sorted((self.bytes(step) for step in steps), reverse=True)
        return min(sum(needs[: self.effort.threads]), self.budget(steps))

    def budget(self, steps: Sequence[Step]) -> int:
        """Return how much memory may be in use at a time."""
        largest = max((self.bytes(step) for step in steps), default=0)
        return self.effort.max_memory or max(_USUAL, largest)


class Budget:
    """Memory that is in use, of what may be."""

    def __init__(self, total: int) -> None:
        """Begin with ``total`` bytes, none in use."""
        self.total = total
        self._left = total
        self._changed = threading.Condition()

    def take(self, count: int) -> None:
        """Wait until ``count`` bytes are left, and take them."""
        with self._changed:
            self._changed.wait_for(lambda: self._left >= count)
            self._left -= count

    def give_back(self, count: int) -> None:
        """Give ``count`` bytes back."""
        with self._changed:
            self._left += count
            self._changed.notify_all()
