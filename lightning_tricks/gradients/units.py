"""Units of weights, each with all that leads into one output, and their gradients.

The units of a matrix or a filter lie along its first axis, those of a transposed convolution along its
second, of each of its groups; a vector or a scalar is one unit.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torch.nn.modules.conv import _ConvTransposeNd
from torch.optim import Optimizer

from lightning_tricks.core.gradients import Groups
from lightning_tricks.core.tensors import local

__all__ = ["Units", "check_units", "transposed", "unit_norms", "units_of", "within_units"]

NONE: Mapping[nn.Parameter, int] = {}


class Units(NamedTuple):
    """Weights and their gradients, of one type and device, and alike in how they are cut into units.

    Attributes:
        weights: What this process holds of each, in the same memory.
        gradients: Likewise.
        axes: The axes of each along which its units lie; none where it is one unit.
        groups: The process groups over which the entries of each unit are spread; none where each process
            holds whole units.
    """

    weights: list[Tensor]
    gradients: list[Tensor]
    axes: list[tuple[int, ...]]
    groups: Groups


def within_units(tensor: Tensor, axes: tuple[int, ...]) -> list[int]:
    """Return the axes of ``tensor`` that run within a unit."""
    return [axis for axis in range(tensor.ndim) if axis not in axes]


def transposed(module: nn.Module) -> dict[nn.Parameter, int]:
    """Return the parameters of transposed convolutions, with the number of groups of channels."""
    layers = (layer for layer in module.modules() if isinstance(layer, _ConvTransposeNd))
    return {parameter: layer.groups for layer in layers for parameter in layer.parameters()}


def check_units(
    chosen: Mapping[str, nn.Parameter],
    flat: Container[nn.Parameter],
    turned: Mapping[nn.Parameter, int] = NONE,
) -> None:
    """Refuse parameters whose units cannot be told from what this process holds.

    Args:
        chosen: The parameters by name.
        flat: Those that FSDP1 holds in flat pieces.
        turned: Those that are :func:`transposed`.

    Raises:
        ValueError: Names one, and says what to do.
    """
    for name, parameter in chosen.items():
        if parameter in flat:
            raise ValueError(
                f"params must match weights that keep their shape, got {name!r}, of which FSDP1 holds flat "
                "pieces: use FSDP2 (ModelParallelStrategy)"
            )
        if turned.get(parameter, 1) > 1 and isinstance(parameter, DTensor):
            raise ValueError(
                f"params must match no transposed convolution with groups over shards, got {name!r}"
            )


def units_of(
    optimizer: Optimizer, chosen: Container[nn.Parameter], turned: Mapping[nn.Parameter, int] = NONE
) -> list[Units]:
    """Return the units of what the next step of ``optimizer`` would change; nothing without gradients.

    Args:
        optimizer: Its groups are read anew, because other code may add to them.
        chosen: The parameters asked for.
        turned: Those whose units do not lie along the first axis: :func:`transposed`.
    """
    found: dict[object, Units] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter not in chosen or parameter.grad is None:
                continue
            axes: tuple[int, ...] = () if parameter.ndim < 2 else (1,) if parameter in turned else (0,)
            groups = _cut(parameter.grad, axes)
            weight, gradient = local(parameter.detach()), local(parameter.grad)
            if axes and (parts := turned.get(parameter, 1)) > 1:
                axes = (0, 2)
                shape = parts, weight.shape[0] // parts, *weight.shape[1:]
                weight, gradient = weight.view(shape), gradient.view(shape)
            kind = gradient.device, gradient.dtype, weight.dtype, groups, bool(axes)
            units = found.setdefault(kind, Units([], [], [], groups))
            units.weights.append(weight)
            units.gradients.append(gradient)
            units.axes.append(axes)
    return list(found.values())


def _cut(tensor: Tensor, axes: tuple[int, ...]) -> Groups:
    """Return the process groups over which a unit of ``tensor`` is spread."""
    if not isinstance(tensor, DTensor):
        return ()
    mesh = tensor.device_mesh
    return tuple(
        mesh.get_group(dim)
        for dim, placement in enumerate(tensor.placements)
        if isinstance(placement, Shard) and placement.dim not in axes and mesh.size(dim) > 1
    )


@torch.no_grad()
def unit_norms(tensors: list[Tensor], axes: list[tuple[int, ...]], groups: Groups = ()) -> Tensor:
    """Return the Euclidean norm of each unit of all ``tensors``, one after another, at least in float32.

    Args:
        tensors: At least one; of one type and device. Either each is one unit, or none is.
        axes: The axes of each along which its units lie.
        groups: Process groups over which the entries of each unit are spread.
    """
    half = tensors[0].dtype in (torch.float16, torch.bfloat16)
    if any(axes):
        wide = torch.float32 if half else None
        norms = [
            torch.linalg.vector_norm(tensor, dim=within_units(tensor, own), dtype=wide).flatten()
            for tensor, own in zip(tensors, axes, strict=True)
        ]
        joined = torch.cat(norms)
    else:
        joined = torch.stack(torch._foreach_norm([each.float() for each in tensors] if half else tensors))
    if groups:
        joined = joined.square()
        for group in groups:
            dist.all_reduce(joined, group=group)
        joined = joined.sqrt()
    return joined
