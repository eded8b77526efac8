"""What becomes of each tensor when models are fused, known before any tensor is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from lightning_tricks.core import checks
from lightning_tricks.core.select import clean_name
from lightning_tricks.fusion.methods import check_names, check_same
from lightning_tricks.lifecycle.stored import Stored, StoredModel

__all__ = ["Matching", "Step", "others_of", "planned"]


@dataclass(frozen=True)
class Matching:
    """Which tensors of several models belong together: those of one name.

    Args:
        prefix: Names are compared without it, if they begin with it, as ``"model."`` in Lightning's
            checkpoints of a module that keeps its network there. The result has the names of the first.
        allow_missing: Whether a tensor may be missing in some models. It is then taken from the last that
            has it, as it is.
    """

    prefix: str = ""
    allow_missing: bool = False

    def __post_init__(self) -> None:
        """Check the settings."""
        if not isinstance(self.prefix, str):
            raise TypeError(f"prefix must be text, got {self.prefix!r}")
        checks.flag("allow_missing", self.allow_missing)

    def names(self, model: StoredModel) -> dict[str, str]:
        """Return the names in ``model`` by those that are compared, without what wrappers put into them.

        Raises:
            ValueError: If two of them are compared by the same name.
        """
        found: dict[str, str] = {}
        for name in model.entries:
            key = clean_name(name).removeprefix(self.prefix)
            if key in found:
                raise ValueError(
                    f"prefix must leave names apart, got {self.prefix!r}, for which {found[key]} and {name} "
                    f"of {model.label} are the same"
                )
            found[key] = name
        return found


@dataclass(frozen=True)
class Step:
    """What becomes of the tensors of one name.

    Attributes:
        names: Their name in the result; several if they are tied in every model.
        tensors: One of each model that has it, in the order of the models.
        action: ``"fuse"`` by the method unless they are equal; ``"last"``, integers and booleans, which the
            last model gives; ``"lone"``, missing in some model and so given by the last that has it.
    """

    names: tuple[str, ...]
    tensors: tuple[Stored, ...]
    action: Literal["fuse", "last", "lone"]

    @property
    def stored(self) -> Stored:
        """The tensor of the last model."""
        return self.tensors[-1]

    @property
    def read(self) -> tuple[Stored, ...]:
        """Those that are needed."""
        return self.tensors if self.action == "fuse" else self.tensors[-1:]


def planned(models: Sequence[StoredModel], matching: Matching) -> list[Step]:
    """Return what becomes of each tensor, in the order of the first model.

    Raises:
        ValueError: If there is no model, or the models do not fit one another; names the tensor.
    """
    names = [matching.names(model) for model in models]
    labels = [model.label for model in models]
    if not matching.allow_missing:
        try:
            check_names(names, labels)
        except ValueError as error:
            raise ValueError(f"{error}{_hint(names)}") from None
    tied: dict[object, list[str]] = {}
    entries: dict[object, tuple[Stored, ...]] = {}
    for key, name in {key: name for each in reversed(names) for key, name in each.items()}.items():
        owners = [index for index, each in enumerate(names) if key in each]
        kinds = [names[index][key] in models[index].tensors for index in owners]
        if not all(kinds):
            _check_kinds(key, kinds, [labels[index] for index in owners])
            continue
        tensors = tuple(models[index].tensors[names[index][key]] for index in owners)
        check_same(key, tensors, [labels[index] for index in owners])
        place = (*owners, *(tensor.place for tensor in tensors))
        tied.setdefault(place, []).append(name)
        entries[place] = tensors
    order = {name: index for index, name in enumerate(names[0].values())}
    steps = [Step(tuple(tied[place]), entries[place], _action(entries[place], len(models))) for place in tied]
    return sorted(steps, key=lambda step: order.get(step.names[0], len(order)))


def _action(tensors: Sequence[Stored], models: int) -> Literal["fuse", "last", "lone"]:
    if len(tensors) < models:
        return "lone"
    dtype = tensors[0].dtype
    return "fuse" if dtype.is_floating_point or dtype.is_complex else "last"


def _check_kinds(key: str, kinds: Sequence[bool], labels: Sequence[str]) -> None:
    if any(kinds):
        there, other = labels[kinds.index(True)], labels[kinds.index(False)]
        raise ValueError(f"{key} must be a tensor in all models or in none; in {there} it is, in {other} not")


def _hint(names: Sequence[Mapping[str, str]]) -> str:
    """Return what may have been meant, where models differ by a prefix of all names."""
    for one, other in product(map(set, names[:1]), map(set, names[1:])):
        for longer, shorter in ((one, other), (other, one)):
            prefix = min(longer).removesuffix(min(shorter)) if longer and shorter else ""
            if prefix.endswith(".") and longer == {prefix + name for name in shorter}:
                return f"; prefix={prefix!r} compares names without it"
    return ""


def others_of(models: Sequence[StoredModel], matching: Matching) -> dict[str, Any]:
    """Return what state dicts hold beside tensors: of each name that of the last model that has it."""
    names = [matching.names(model) for model in models]
    called = {key: name for each in reversed(names) for key, name in each.items()}
    return {
        called[key]: model.others[name]
        for model, each in zip(models, names, strict=True)
        for key, name in each.items()
        if name in model.others
    }
