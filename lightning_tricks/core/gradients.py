"""The gradients that a step uses, in lists that torch's foreach kernels handle at once."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from operator import attrgetter
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor, Shard
from torch.optim import Optimizer

__all__ = ["Gradients", "Groups", "gradients_of", "groups_of_held", "groups_of_tensor", "sign_of"]

Groups = tuple[ProcessGroup, ...]

_KIND = attrgetter("device", "dtype")


class Gradients(NamedTuple):
    """Gradients of one type and device.

    Attributes:
        tensors: What this process holds of each, sharing its memory.
        groups: The process groups over which each is spread, so that only together they hold all of it;
            none where each process holds the whole.
    """

    tensors: list[Tensor]
    groups: Groups


def gradients_of(
    optimizer: Optimizer,
    chosen: Container[nn.Parameter] | None = None,
    spread: Mapping[nn.Parameter, Groups] | None = None,
) -> list[Gradients]:
    """Return the gradients that the next step of ``optimizer`` would use; nothing if there are none.

    Args:
        optimizer: Its groups are read anew, because other code may add to them.
        chosen: The parameters asked for; ``None`` for all.
        spread: Parameters that are spread over processes in a way that their tensors do not tell. Where
            this process holds nothing of a gradient, an empty one stands for it, because the others wait
            for this one in the same groups.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if chosen is not None:
        parameters = [p for p in parameters if p in chosen]
    if not spread:
        tensors = [grad for grad in [p.grad for p in parameters] if grad is not None]
        if set(map(type, tensors)) == {Tensor} and len(set(map(_KIND, tensors))) == 1:
            return [Gradients(tensors, ())]  # as nearly always, in half of the time
    return _by_kind(parameters, spread or {})


def _by_kind(parameters: Iterable[nn.Parameter], spread: Mapping[nn.Parameter, Groups]) -> list[Gradients]:
    found: dict[object, Gradients] = {}
    for parameter in parameters:
        groups = spread.get(parameter, ())
        gradient = parameter.grad
        if gradient is None:
            if not (groups and parameter.requires_grad):
                continue
            gradient = parameter.new_zeros(0)  # another process may hold some of it
        if isinstance(gradient, DTensor):
            groups, gradient = groups_of_tensor(gradient), gradient.to_local()
        kind = gradient.device, gradient.dtype, groups
        if (alike := found.get(kind)) is None:
            alike = found[kind] = Gradients([], groups)
        alike.tensors.append(gradient)
    return list(found.values())


def groups_of_tensor(tensor: DTensor) -> Groups:
    """Return the process groups over which ``tensor`` is spread; none if each process holds all of it."""
    mesh = tensor.device_mesh
    return tuple(
        mesh.get_group(dim)
        for dim, placement in enumerate(tensor.placements)
        if isinstance(placement, Shard) and mesh.size(dim) > 1
    )


def groups_of_held(tensor: Tensor, spread: Mapping[nn.Parameter, Groups]) -> Groups:
    """Return those over which a module's tensor is spread; ``spread`` knows what it does not tell itself."""
    if isinstance(tensor, DTensor):
        return groups_of_tensor(tensor)
    return spread.get(tensor, ()) if isinstance(tensor, nn.Parameter) else ()


def sign_of(group: dict[str, Any]) -> float:
    """Return by what a penalty's gradient is multiplied: -1 where the optimizer climbs, else 1."""
    return -1.0 if group.get("maximize") else 1.0
