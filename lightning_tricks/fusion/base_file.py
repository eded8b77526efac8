"""The file of a base, for weights of a run that are fused over it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from lightning_tricks.core.select import clean_name
from lightning_tricks.fusion.methods import check_names, check_same
from lightning_tricks.fusion.provenance import described
from lightning_tricks.lifecycle.opening import Reading
from lightning_tricks.lifecycle.processes import in_first

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_tricks.lifecycle.stored import Stored, StoredModel
    from lightning_tricks.lifecycle.weights import Weights

__all__ = ["BaseFile"]


@dataclass(frozen=True)
class BaseFile:
    """A model in a file, read by the first process alone, and tensor by tensor until it is fused.

    Attributes:
        path: As :func:`~lightning_tricks.fuse` takes one; more than tensors and plain values is refused.
        weights: Those of the module that it must fit.
    """

    path: str
    weights: Weights

    def check(self) -> None:
        """Accept a file that holds the tensors of the module, and numbers in them.

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If it is damaged or does not fit; names the tensor.
        """
        in_first(self.weights.trainer, partial(self._check, self.weights.wholes()))

    def tensors(self) -> dict[str, Tensor]:
        """Return this process's parts of its tensors, by their names in the module's state dict.

        Raises:
            FileNotFoundError: If it is not there any more.
            ValueError: If it has become another.
        """
        return self.weights.spread(partial(self._read, self.weights.wholes()))

    def described(self) -> dict[str, Any]:
        """Return its name and size, as all that is written down of models."""
        return in_first(self.weights.trainer, self._described)

    def _described(self) -> dict[str, Any]:
        with ExitStack() as stack:
            return described(self._open(stack))

    def _open(self, stack: ExitStack) -> StoredModel:
        try:
            return Reading().open(self.path, stack, label=self.path)
        except FileNotFoundError:
            raise FileNotFoundError(f"base must be a file that is there, got {self.path!r}") from None

    @contextmanager
    def _opened(self, wholes: dict[str, Tensor]) -> Iterator[dict[str, Stored]]:
        with ExitStack() as stack:
            held = {clean_name(name): tensor for name, tensor in self._open(stack).tensors.items()}
            own = {clean_name(name): name for name in wholes}
            labels = ("the module", self.path)
            check_names((own, held), labels)
            for clean, name in own.items():
                check_same(clean, (wholes[name], held[clean]), labels)
            yield {name: held[clean] for clean, name in own.items()}

    def _check(self, wholes: dict[str, Tensor]) -> None:
        with self._opened(wholes) as found:
            for name, stored in found.items():
                kind = stored.dtype
                if (kind.is_floating_point or kind.is_complex) and stored.read().isnan().any():
                    raise ValueError(f"{name} of {self.path} must hold numbers to be fused, got NaN")

    def _read(self, wholes: dict[str, Tensor]) -> dict[str, Tensor]:
        with self._opened(wholes) as found:
            stored = {each.place: each for each in found.values()}
            tensors = {place: each.read().view(each.shape) for place, each in stored.items()}
            return {name: tensors[each.place] for name, each in found.items()}
