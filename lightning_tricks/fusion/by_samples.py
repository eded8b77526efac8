"""Methods of fusion that weigh models by how many samples each was trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from lightning_tricks.core import checks
from lightning_tricks.fusion.methods import TensorwiseMethod
from lightning_tricks.lifecycle.stored import StoredModel

__all__ = ["BySamples"]


@dataclass(frozen=True)
class BySamples(TensorwiseMethod):
    """Base of policies that know how many samples each model was trained on, or ask its checkpoint.

    Args:
        samples: One number for each model that was trained, none below 0 and not all 0; ``None`` for what
            their checkpoints say: the number under ``samples`` beside the state dict, else that among the
            hyperparameters, else that among the data module's.
    """

    samples: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.samples is not None:
            object.__setattr__(self, "samples", _checked(self.samples))

    @property
    def untrained(self) -> int:
        """How many of the first models were not trained, and have no samples."""
        return 0

    @property
    def count(self) -> int | None:
        return None if self.samples is None else self.untrained + len(self.samples)

    @property
    def least(self) -> int:
        return self.untrained + 1

    def accepts(self, count: int) -> bool:
        self._given()
        return super().accepts(count)

    @property
    def shares(self) -> list[float]:
        """The share of each trained model in all samples."""
        samples = self._given()
        return [count / sum(samples) for count in samples]

    def _given(self) -> tuple[float, ...]:
        if self.samples is None:
            raise ValueError(f"samples must be given for {self!r} where no checkpoints are fused, got None")
        return self.samples

    def counted(self, models: Sequence[StoredModel]) -> Self:
        """Return it with the samples that ``models``, the untrained ones first, say, if it has none.

        Raises:
            ValueError: If one does not say, or no number from 0; names it.
        """
        if self.samples is not None:
            return self
        return dataclasses.replace(self, samples=tuple(map(_samples_of, models[self.untrained :])))


def _samples_of(model: StoredModel) -> float:
    beside = [model.around.get(key) for key in ("hyper_parameters", "datamodule_hyper_parameters")]
    places = [place for place in (model.around, *beside) if isinstance(place, Mapping)]
    found = next((place["samples"] for place in places if "samples" in place), None)
    if found is None:
        # Lightning counts batches, and nothing says how large each was.
        raise ValueError(
            f"samples must be given, because {model.label} does not say how many it was trained on: neither "
            "under 'samples' beside its state dict nor among its hyperparameters"
        )
    checks.in_range(f"samples in {model.label}", found, 0.0, 1e300)
    return found  # type: ignore[no-any-return]  # a number, as was checked


def _checked(samples: object) -> tuple[float, ...]:
    if not isinstance(samples, list | tuple) or not samples:
        raise TypeError(f"samples must be a list of numbers, got {samples!r}")
    for count in samples:
        checks.in_range("every entry of samples", count, 0.0, 1e300)
    if sum(samples) == 0:
        raise ValueError(f"samples must not all be 0, got {samples!r}")
    return tuple(samples)
