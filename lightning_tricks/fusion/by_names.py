"""Methods of fusion that must know the names of all tensors before they can say what becomes of one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor

from lightning_tricks.fusion.methods import TensorwiseMethod

__all__ = ["ByNames"]


class ByNames(TensorwiseMethod):
    """Base of policies that do not combine themselves: what :meth:`resolved` returns does."""

    @abstractmethod
    def resolved(self, names: Sequence[str]) -> TensorwiseMethod:
        """Return the method for tensors of these names, as in the base."""

    def combine(self, name: str, tensors: list[Tensor]) -> Tensor:
        raise NotImplementedError("only the method that `resolved` returns combines")
