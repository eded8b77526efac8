"""Models of different origin, with the units of all in one order before they are fused by another method.

    theta = fuse(theta_1, P_2(theta_2), ..., P_n(theta_n))

The permutations ``P_i`` change no function. Without them a mean of networks that began with different weights
is no better than a random one. Running statistics of BatchNorm should be estimated anew for the result.

Reference: Ainsworth et al., "Git Re-Basin: Merging Models modulo Permutation Symmetries", 2022,
https://arxiv.org/abs/2209.04836.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor, nn

from lightning_tricks.core import checks
from lightning_tricks.core.tensors import Model
from lightning_tricks.fusion.average import Average
from lightning_tricks.fusion.layerwise import Layerwise
from lightning_tricks.fusion.methods import Evaluate, FusionMethod
from lightning_tricks.fusion.of_module import OfModule, for_module
from lightning_tricks.fusion.permutation_spec import permutation_spec
from lightning_tricks.fusion.permutations import checked_spec, places, read_spec
from lightning_tricks.fusion.probe import Probing
from lightning_tricks.fusion.weight_matching import align, align_to_mean

__all__ = ["Aligned"]


@dataclass(frozen=True)
class Aligned(OfModule):
    """Bring the units of all models into one order (:func:`weight_matching`), then fuse by another method.

    Needs whole models in memory, and scipy. The result has the order of the first model, which is the base
    of methods that have one.

    Args:
        then: How to fuse the aligned models.
        spec: Which permutation goes along which axis of each tensor: a file of YAML or JSON, or a dict such
            as ``{"0.weight": ["hidden", None], "0.bias": ["hidden"], "1.weight": [None, "hidden"], ...}``.
            ``None`` to find it from the module (``permutation_spec``), where modules are fused or trained.
        to: Whether each model is aligned to the ``"first"``, or in turn to the ``"mean"`` of the others.
        seed: Of the order in which permutations are visited.

    Example:
        >>> Aligned(then=Average((0.25, 0.75)), spec="spec.yaml").count
        2
    """

    then: FusionMethod = field(default_factory=Average)
    spec: str | dict[str, Any] | None = None
    to: Literal["first", "mean"] = "first"
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.then, FusionMethod):
            raise TypeError(f"then must be a FusionMethod such as Average(), got {self.then!r}")
        inner = _within(self.then)
        # A recipe looks at nothing by itself, and the methods that it holds are among these.
        if any(isinstance(method, Probing) and not isinstance(method, Layerwise) for method in inner):
            raise ValueError(
                "then must hold no method that looks at data, which it does before models are aligned, got "
                f"{self.then!r}"
            )
        if isinstance(self.spec, str):
            checks.text("spec", self.spec)
        elif self.spec is not None:
            object.__setattr__(self, "spec", checked_spec(self.spec))
        checks.one_of("to", self.to, ("first", "mean"))
        checks.whole("seed", self.seed)

    @property
    def base(self) -> str | None:
        return self.then.base

    @property
    def count(self) -> int | None:
        return self.then.count

    @property
    def least(self) -> int:
        return self.then.least

    @property
    def objective(self) -> tuple[str | None, str | None] | None:
        return self.then.objective

    @property
    def entrywise(self) -> bool:
        return False

    def for_module(self, module: nn.Module) -> FusionMethod:
        spec = permutation_spec(module) if self.spec is None else self._spec()
        places(spec, module.state_dict())  # refuses what does not fit, before anything is trained or read
        return replace(self, then=for_module(self.then, module), spec=spec)

    def fuse(self, models: Sequence[Model], evaluate: Evaluate | None = None) -> dict[str, Tensor]:
        self.check_count(len(models))
        if self.spec is None:
            raise ValueError(f"spec must be given where no module is at hand to find it from, got {self!r}")
        spec = self._spec()
        aligned = (align if self.to == "first" else align_to_mean)(models, spec, seed=self.seed)
        return self.then.fuse(aligned, evaluate)

    def _spec(self) -> dict[str, Any]:
        return read_spec(self.spec) if isinstance(self.spec, str) else self.spec or {}


def _within(value: object) -> list[FusionMethod]:
    """Return the methods of which ``value`` is made."""
    if isinstance(value, FusionMethod):
        known = dataclasses.fields(value)  # type: ignore[arg-type]  # methods are dataclasses
        inner = [getattr(value, each.name) for each in known]
        return [value, *_within(inner)]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [method for each in values for method in _within(each)]
