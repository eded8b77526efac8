"""What a module held before fused weights replaced it, and the way back to it."""

from __future__ import annotations

from torch import Tensor

from lightning_tricks.core.select import clean_name
from lightning_tricks.lifecycle.member import Member
from lightning_tricks.lifecycle.notice import callbacks_of, say
from lightning_tricks.lifecycle.weights import Weights, checksum

__all__ = ["Former"]


class Former:
    """A copy of what a module holds in this process, in the memory of the CPU.

    Attributes:
        weights: What it copies.
        live: Those of its tensors that training goes on from, once the replacement is noted. A checkpoint
            that holds the replacement must hold them too.
    """

    def __init__(self, weights: Weights) -> None:
        """Copy what the module of ``weights`` holds now."""
        self.weights = weights
        self.live: dict[str, Tensor] = {}
        self._copy = {name: value.to("cpu", copy=True) for name, value in weights.tensors().items()}
        self._replacement = ""

    def put_back(self) -> None:
        """Put the copy into the module."""
        self.weights.put(self._copy)

    def put_back_if_it_stands(self, name: str) -> None:
        """Put it back where a fit begins, unless the module has got others; then say so as ``name``."""
        if self.weights.trainer.lightning_module is not self.weights.module:
            return
        if self.replacement_stands():
            self.put_back()
        else:
            others = "the module holds other weights than the fused ones"
            say(
                self.weights.trainer, f"{name}: {others}, so it starts from them and not from those of before"
            )

    def note_replacement(self, order: int) -> None:
        """Take note that the module now holds other weights.

        Args:
            order: Techniques of a lower ``finish_order`` have finished before the copy was made.
        """
        self._replacement = checksum(self.weights.parameters())
        members = [each for each in callbacks_of(self.weights.trainer) if isinstance(each, Member)]
        earlier = [
            member
            for member in members
            if member.finish_order < order and type(member).finish is not Member.finish
        ]
        # Who put an average in knows the live weights; those that we found in their place are not them.
        if all(type(member).average is not Member.average for member in earlier):
            seen = [member for member in earlier if member.evaluates_average]
            theirs = {name for member in seen for name in member.average() or ()}
            self.live = {name: self._copy[name] for name in self._copy if clean_name(name) not in theirs}

    def replacement_stands(self) -> bool:
        """Return whether the module still has the parameters that were noted; buffers do not count.

        To be called by all processes together, of which one may hold a part that has not changed.
        """
        stands = self._replacement == checksum(self.weights.parameters())
        return self.weights.trainer.strategy.reduce_boolean_decision(stands)
