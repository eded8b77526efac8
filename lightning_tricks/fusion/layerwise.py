"""Layer-wise fusion: a recipe says which method fuses which tensors.

The first pattern that matches a tensor's name, or a module that holds it, decides. Patterns match whole
names, so ``"blocks.1"`` takes ``blocks.1.weight`` and never ``blocks.10.weight``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from lightning_tricks.core import checks
from lightning_tricks.core.select import clean_name, matches
from lightning_tricks.core.tensors import Model
from lightning_tricks.fusion.by_names import ByNames
from lightning_tricks.fusion.methods import TensorwiseMethod
from lightning_tricks.fusion.probe import Probe, Probing, informed, needs_probe

__all__ = ["Layerwise", "layerwise"]


def layerwise(models: Sequence[Model], recipe: Mapping[str, TensorwiseMethod]) -> dict[str, Tensor]:
    """Return the model whose tensors are fused each by the first method of ``recipe`` that matches it.

    Args:
        models: As many as all methods need; of equal names, shapes and types.
        recipe: A method for each pattern of names, as in a shell.

    Raises:
        ValueError: If a tensor is matched by no pattern, or a pattern matches none that is left; names it.

    Example:
        >>> from torch import tensor
        >>> from lightning_tricks import Average, Interpolate
        >>> models = [{"body.w": tensor(value), "head.w": tensor(value)} for value in (0.0, 4.0)]
        >>> layerwise(models, {"head": Interpolate(0.25), "*": Average()})
        {'body.w': tensor(2.), 'head.w': tensor(3.)}
    """
    return Layerwise({**recipe}).fuse(models)


@dataclass(frozen=True)
class Layerwise(ByNames, Probing):
    """Fuse different tensors by different methods, the first match of a recipe (:func:`layerwise`).

    Methods over a base file get it before the other models, methods without one get the other models alone.

    Args:
        recipe: A method for each pattern of names. Every tensor must be matched; ``"*"`` as the last matches
            the rest.

    Example:
        >>> from lightning_tricks import Average, Slerp
        >>> Layerwise({"blocks.*": Slerp(0.3), "*": Average()}).count
        2
    """

    recipe: dict[str, TensorwiseMethod]

    def __post_init__(self) -> None:
        if not isinstance(self.recipe, dict) or not self.recipe:
            raise TypeError(f"recipe must be a dict of patterns and methods, got {self.recipe!r}")
        for pattern, method in self.recipe.items():
            checks.text("every pattern of recipe", pattern)
            if not isinstance(method, TensorwiseMethod):
                raise TypeError(
                    "every method of recipe must be one that fuses tensor by tensor, such as Average(), got "
                    f"{method!r} for {pattern!r}"
                )
        for what, found in (("base", self._bases), ("number of models", self._counts)):
            if len(found) > 1:
                raise ValueError(f"recipe must have one {what} for all its methods, got {self.recipe!r}")

    @property
    def _bases(self) -> set[str]:
        return {method.base for method in self.recipe.values() if method.base is not None}

    @property
    def _counts(self) -> set[int]:
        return {
            method.count + self._extra(method) for method in self.recipe.values() if method.count is not None
        }

    def _extra(self, method: TensorwiseMethod) -> int:
        """Return how many models come before those that ``method`` gets: the base, if it is not its own."""
        return int(bool(self._bases) and method.base is None)

    @property
    def base(self) -> str | None:
        return next(iter(self._bases), None)

    @property
    def count(self) -> int | None:
        return next(iter(self._counts), None)

    @property
    def least(self) -> int:
        return max(method.least + self._extra(method) for method in self.recipe.values())

    @property
    def entrywise(self) -> bool:
        return all(method.entrywise for method in self.recipe.values())

    @property
    def needs_probe(self) -> bool:
        return any(needs_probe(method) for method in self.recipe.values())

    @property
    def batches(self) -> int | None:
        probing = [each for each in self.recipe.values() if isinstance(each, Probing) and each.needs_probe]
        wanted = [each.batches for each in probing]
        return None if None in wanted else max(filter(None, wanted), default=None)

    def probed(self, models: Sequence[Model], probe: Probe) -> Layerwise:
        recipe: dict[str, TensorwiseMethod] = {}
        for pattern, method in self.recipe.items():
            found = informed(method, models[self._extra(method) :], probe)
            assert isinstance(found, TensorwiseMethod)
            recipe[pattern] = found
        return Layerwise(recipe)

    def resolved(self, names: Sequence[str]) -> TensorwiseMethod:
        found: dict[str, list[str]] = {pattern: [] for pattern in self.recipe}
        unmatched: list[str] = []
        for name in names:
            pattern = next((pattern for pattern in self.recipe if matches(pattern, clean_name(name))), None)
            (unmatched if pattern is None else found[pattern]).append(name)
        if unmatched:
            raise ValueError(
                f"recipe must match every tensor, but no pattern of {list(self.recipe)!r} matches "
                f"{checks.listed(unmatched)}; '*' as the last one matches the rest"
            )
        for pattern, hits in found.items():
            if not hits:
                near = ", ".join(map(repr, checks.nearest(pattern, map(clean_name, names)) or names[:3]))
                raise ValueError(
                    f"recipe must have patterns that match a tensor, got {pattern!r}, which matches none "
                    f"that no earlier one matches; nearest: {near}"
                )
        methods = {
            name: (method.resolved(found[pattern]), self._extra(method))
            for pattern, method in self.recipe.items()
            for name in found[pattern]
        }
        return Assigned(self, methods)


@dataclass(frozen=True)
class Assigned(TensorwiseMethod):
    """Fuses each tensor by the method that it was given; what :meth:`resolved` returns.

    Args:
        origin: The method that this one stands for.
        methods: By the name of a tensor, its method and how many of the first models that does not get.
    """

    origin: TensorwiseMethod
    methods: dict[str, tuple[TensorwiseMethod, int]] = field(repr=False)

    @property
    def entrywise(self) -> bool:
        return self.origin.entrywise

    def combine(self, name: str, tensors: list[Tensor]) -> Tensor:
        method, extra = self.methods[name]
        return method.combine(name, tensors[extra:])
