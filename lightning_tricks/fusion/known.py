"""Methods that know something of each model beside its weights: a tensor for each of some tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from torch import Tensor

from lightning_tricks.core import checks
from lightning_tricks.core.select import clean_name
from lightning_tricks.core.tensors import Model
from lightning_tricks.fusion.methods import TensorwiseMethod
from lightning_tricks.lifecycle import files

__all__ = ["Known", "checked_paths", "opened"]


@dataclass(frozen=True)
class Known(TensorwiseMethod):
    """Base of what fuses by such knowledge, once that has been opened or computed.

    Args:
        labels: What to call it, for each model.
        known: It, for each model, by the names of the tensors that it belongs to.
    """

    labels: list[str]
    known: list[Model] = field(repr=False)

    @property
    def count(self) -> int:
        return len(self.known)

    @property
    def entrywise(self) -> bool:
        return False  # it belongs to a whole tensor

    def checked(self, names: Sequence[str]) -> Self:
        """Return itself, if it knows of tensors of these names, and of each model's of the same.

        Raises:
            ValueError: If not; names the tensor.
        """
        models = {clean_name(name) for name in names}
        first = self.known[0]
        if not first:
            raise ValueError(f"{self.labels[0]} must hold at least one tensor, got none")
        for label, each in zip(self.labels, self.known, strict=True):
            if strange := [name for name in each if clean_name(name) not in models]:
                raise ValueError(f"{label} must be of the models' tensors, got {checks.listed(strange)}")
            if alone := [*(first.keys() ^ each.keys())]:
                raise ValueError(
                    f"{label} must be of the same tensors as {self.labels[0]}, but {checks.listed(alone)} "
                    "are in one of them alone"
                )
        return self

    def of(self, place: int, name: str) -> Tensor | None:
        """Return what is known of a tensor of one model; ``None`` if nothing is."""
        names = {clean_name(key): key for key in self.known[place]}
        return self.known[place][names[clean_name(name)]] if clean_name(name) in names else None


def checked_paths(setting: str, paths: object) -> tuple[str, ...]:
    """Return ``paths``, the value of ``setting``, as a tuple.

    Raises:
        TypeError: If they are no list of paths.
    """
    if not isinstance(paths, list | tuple) or not paths:
        raise TypeError(f"{setting} must be a list of files, got {paths!r}")
    return tuple(checks.text(f"every entry of {setting}", path) for path in paths)


def opened(setting: str, path: str) -> Model:
    """Return the tensors by name that ``torch.save`` wrote to ``path``, one of the files of ``setting``.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it holds something else.
    """
    try:
        found = files.load(Path(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"every file of {setting} must be there, but {path!r} is not") from None
    except (OSError, ValueError) as error:
        raise ValueError(
            f"every file of {setting} must hold tensors by name, got {path!r}: {error}"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"every file of {setting} must hold tensors by name, got {path!r}")
    return found
