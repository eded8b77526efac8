"""Where the tensors of a module are that an average is taken of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from lightning_tricks.core.select import Pattern, Patterns, as_patterns, clean_name, matches, resolved, select
from lightning_tricks.core.tensors import local

__all__ = ["Slot", "find_slots", "other_buffers", "same_places", "stand_in"]


@dataclass(frozen=True, eq=False)
class Slot:
    """The place of a tensor in a module, where it is found even if the module has replaced it.

    Attributes:
        owner: The parameters or the buffers of the module that holds it.
        key: Its name there.
        names: All clean names under which a state dict holds it, the first first.
        estimated: Whether its second value is estimated for the average, and not averaged.
    """

    owner: dict[str, Any]
    key: str
    names: list[str]
    estimated: bool = False

    @property
    def held(self) -> Tensor:
        """What the module holds."""
        held: Tensor = self.owner[self.key]
        return held

    @property
    def tensor(self) -> Tensor:
        """The values that this process holds of it, in the same memory."""
        return local(self.owner[self.key]).detach()

    @property
    def moves(self) -> bool:
        """Whether training changes it, as far as can be known: it is no frozen parameter."""
        return self.held.requires_grad or not isinstance(self.held, nn.Parameter)


def find_slots(
    module: nn.Module, patterns: Patterns, *, buffers: bool, statistics: bool = False
) -> dict[str, Slot]:
    """Return the places of floating and complex tensors that ``patterns`` match, by first clean name.

    Args:
        module: Searched with all its children; a tied tensor is found once, with all its names.
        patterns: Which parameters, and which buffers, as in :func:`~lightning_tricks.core.select.select`.
        buffers: Whether buffers that state dicts hold are wanted too.
        statistics: Whether those of BatchNorm are to be estimated: all of them then, and integers too.

    Raises:
        ValueError: If a pattern matches no parameter, or only such that cannot be averaged.
    """
    chosen = {id(parameter) for parameter in select(module, patterns).values()}
    wanted = [each for pattern in as_patterns("params", patterns) for each in resolved(module, pattern)]
    slots: dict[int, Slot] = {}
    for path, child in module.named_modules(remove_duplicate=False):
        for key, tensor in child._parameters.items():
            if id(tensor) in chosen:
                _note(slots, child._parameters, key, path)
        for key in _buffers_of(child):
            if statistics and isinstance(child, _BatchNorm):
                _note(slots, child._buffers, key, path, estimated=True)
            elif buffers and any(_covers(each, module, path, key, child._buffers[key]) for each in wanted):
                _note(slots, child._buffers, key, path)
    found = {slot.names[0]: slot for slot in slots.values() if slot.estimated or _can_be_averaged(slot)}
    if all(slot.estimated for slot in found.values()):
        raise ValueError(f"params must match a floating parameter, got {patterns!r}")
    return found


def _buffers_of(module: nn.Module) -> list[str]:
    """Return the names of its own buffers that state dicts hold."""
    own = module._buffers.items()
    return [key for key, value in own if value is not None and key not in module._non_persistent_buffers_set]


def _note(
    slots: dict[int, Slot], owner: dict[str, Any], key: str, path: str, *, estimated: bool = False
) -> None:
    slot = slots.setdefault(id(owner[key]), Slot(owner, key, [], estimated))
    slot.names.append(clean_name(f"{path}.{key}"))


def _can_be_averaged(slot: Slot) -> bool:
    if is_lazy(slot.held):
        raise ValueError(
            f"params must be initialised before training, got the lazy {slot.names[0]!r}: "
            "run one batch through the module first"
        )
    if not (slot.held.is_floating_point() or slot.held.is_complex()):
        return False
    # The difference of two infinities, in a mask, is none.
    return isinstance(slot.held, nn.Parameter) or bool(slot.tensor.isfinite().all())


def _covers(pattern: Pattern, module: nn.Module, path: str, key: str, buffer: Tensor) -> bool:
    if isinstance(pattern, type):
        parts = path.split(".") if path else []
        holders = (".".join(parts[:end]) for end in range(len(parts) + 1))
        return any(isinstance(module.get_submodule(holder), pattern) for holder in holders)
    name = clean_name(f"{path}.{key}")
    return matches(pattern, name) if isinstance(pattern, str) else bool(pattern(name, buffer))


def other_buffers(
    module: nn.Module, slots: Mapping[str, Slot]
) -> list[tuple[dict[str, Any], str, str, Tensor]]:
    """Return of each buffer without a slot its owner, its name there, its clean name and a CPU copy."""
    return [
        (child._buffers, key, name, buffer.to("cpu", copy=True))
        for path, child in module.named_modules()
        for key, buffer in child._buffers.items()
        if buffer is not None and (name := clean_name(f"{path}.{key}")) not in slots
    ]


def same_places(first: dict[str, Slot], second: dict[str, Slot]) -> bool:
    """Return whether two searches found the same tensors of the same module."""
    places = ({name: id(slot.owner) for name, slot in slots.items()} for slots in (first, second))
    return next(places) == next(places)


def stand_in(slots: dict[str, Slot], module: nn.Module) -> bool:
    """Return whether ``module`` still has all of ``slots``; a layer that was replaced took its own away."""
    owners = {id(owner) for child in module.modules() for owner in (child._parameters, child._buffers)}
    return all(id(slot.owner) in owners for slot in slots.values())
