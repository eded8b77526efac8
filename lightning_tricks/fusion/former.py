"""What a module held before fused weights replaced it, and the way back to it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from lightning_tricks.core.select import clean_name
from lightning_tricks.fusion.weights import checksum, put_, tensors_of
from lightning_tricks.lifecycle.conductor import Member

__all__ = ["Former"]


class Former:
    """A copy of what a module holds, in the memory of the CPU.

    Attributes:
        module: The module.
        live: Those of its tensors that training goes on from, once the replacement is noted. A checkpoint
            that holds the replacement must hold them too.
    """

    def __init__(self, module: nn.Module) -> None:
        """Copy what ``module`` holds now."""
        self.module = module
        self.live: dict[str, Tensor] = {}
        self._copy = {name: value.to("cpu", copy=True) for name, value in tensors_of(module).items()}
        self._replacement = ""

    def put_back(self) -> None:
        """Put the copy into the module."""
        put_(self.module, self._copy)

    def note_replacement(self, earlier: Iterable[Member]) -> None:
        """Take note that the module now holds other weights.

        Args:
            earlier: The techniques that have finished before the copy was made.
        """
        self._replacement = self._parameters()
        earlier = [member for member in earlier if type(member).finish is not Member.finish]
        # Who put an average in knows the live weights; those that we found in their place are not them.
        if all(type(member).average is not Member.average for member in earlier):
            theirs = {name for member in earlier for name in member.average() or ()}
            self.live = {name: self._copy[name] for name in self._copy if clean_name(name) not in theirs}

    @property
    def replacement_stands(self) -> bool:
        """Whether the module still has the parameters that were noted; buffers do not count."""
        return self._replacement == self._parameters()

    def _parameters(self) -> str:
        return checksum(dict(self.module.named_parameters()))
