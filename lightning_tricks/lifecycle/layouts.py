"""Which part of each weight a process holds, under FSDP of either generation.

The parts are local tensors, on which arithmetic costs no communication. ``whole`` and ``part`` are for what
is saved and loaded; both are called by all processes together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.placement_types import Placement

from lightning_tricks.core.select import clean_name
from lightning_tricks.core.tensors import local
from lightning_tricks.lifecycle.strategies import flat_units, groups_of, reshard

__all__ = ["Layout", "Layouts", "Wholes", "layouts_of", "module_parts", "parts_of", "wholes_of"]


class Layout(ABC):
    """How one weight is laid out over processes.

    Attributes:
        shape: That of the whole weight.
    """

    shape: torch.Size

    @abstractmethod
    def whole(self, part: Tensor) -> Tensor:
        """Return the tensor of which each process holds ``part``, on the device of ``part``."""

    @abstractmethod
    def part(self, whole: Tensor) -> Tensor:
        """Return this process's part of ``whole``, a copy on the device of the weight."""


# Of the weights that are not whole in each process, by all their clean names.
Layouts = Mapping[str, Layout]


@dataclass(frozen=True)
class _Mesh(Layout):
    """That of a DTensor."""

    mesh: DeviceMesh
    placements: tuple[Placement, ...]
    shape: torch.Size
    stride: tuple[int, ...]

    def whole(self, part: Tensor) -> Tensor:
        on_mesh = part.to(self.mesh.device_type)
        spread = DTensor.from_local(
            on_mesh, self.mesh, self.placements, run_check=False, shape=self.shape, stride=self.stride
        )
        whole: Tensor = spread.full_tensor()
        return whole.to(part.device)

    def part(self, whole: Tensor) -> Tensor:
        on_mesh = whole.to(self.mesh.device_type)
        spread = distribute_tensor(on_mesh, self.mesh, self.placements, src_data_rank=None)
        part: Tensor = spread.to_local().clone()
        return part


@dataclass(frozen=True)
class _Flat(Layout):
    """That of a parameter of FSDP1: consecutive entries in each process.

    Attributes:
        lengths: How many entries each process of the group holds.
        device: That of the parameter, on which the group can communicate.
    """

    group: dist.ProcessGroup
    lengths: tuple[int, ...]
    shape: torch.Size
    device: torch.device

    def whole(self, part: Tensor) -> Tensor:
        # Of one length, because not all backends gather others.
        own = torch.zeros(max(self.lengths), dtype=part.dtype, device=self.device)
        own[: part.numel()] = part.to(self.device)
        pieces = [torch.empty_like(own) for _ in self.lengths]
        dist.all_gather(pieces, own, group=self.group)
        flat = torch.cat([piece[:length] for piece, length in zip(pieces, self.lengths, strict=True)])
        return flat.view(self.shape).to(part.device)

    def part(self, whole: Tensor) -> Tensor:
        begin = sum(self.lengths[: dist.get_rank(self.group)])
        length = self.lengths[dist.get_rank(self.group)]
        return whole.flatten()[begin : begin + length].to(self.device, copy=True)


def layouts_of(trainer: Trainer, module: LightningModule) -> dict[str, Layout]:
    """Return the layouts of the weights that are not whole in each process, by all their clean names.

    To be called by all processes, between two optimizer steps.
    """
    reshard(trainer)
    flat = _flat_layouts(trainer)
    found: dict[str, Layout] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if isinstance(tensor := parameter.data, DTensor):
            found[clean_name(name)] = _Mesh(
                tensor.device_mesh, tensor.placements, tensor.shape, tensor.stride()
            )
        elif parameter in flat:
            found[clean_name(name)] = flat[parameter]
    return found


def _flat_layouts(trainer: Trainer) -> dict[Tensor, Layout]:
    found: dict[Tensor, Layout] = {}
    for unit in flat_units(trainer):
        # An inner unit has its own turn, later.
        own = dict(unit.named_parameters())
        with FullyShardedDataParallel.summon_full_params(unit, recurse=False, writeback=False):
            shapes = {clean_name(name): parameter.shape for name, parameter in unit.named_parameters()}
        for group in groups_of(unit):
            lengths: list[Any] = [None] * dist.get_world_size(group)
            dist.all_gather_object(lengths, [parameter.numel() for parameter in own.values()], group=group)
            for (name, parameter), *each in zip(own.items(), *lengths, strict=True):
                found[parameter] = _Flat(group, tuple(each), shapes[clean_name(name)], parameter.device)
    return found


def module_parts(module: nn.Module) -> dict[str, Tensor]:
    """Return what this process holds of each tensor of a state dict, by clean name, in the same memory."""
    found: dict[str, Tensor] = {}
    for path, child in module.named_modules(remove_duplicate=False):
        buffers = child._buffers.items()
        kept = ((key, value) for key, value in buffers if key not in child._non_persistent_buffers_set)
        for key, value in [*child._parameters.items(), *kept]:
            if value is not None:
                found[clean_name(f"{path}.{key}")] = local(value).detach()
    return found


def parts_of(wholes: Mapping[str, Tensor], layouts: Layouts) -> dict[str, Tensor]:
    """Return this process's parts of whole tensors, by clean names."""
    named = {clean_name(key): value for key, value in wholes.items()}
    return {key: layouts[key].part(value) if key in layouts else value for key, value in named.items()}


def wholes_of(parts: Mapping[str, Tensor], layouts: Layouts, *, keep: bool = True) -> dict[str, Tensor]:
    """Return the whole tensors, on the CPU, of which the processes hold ``parts``, by clean names.

    Args:
        parts: Those of this process; all processes give the same names in the same order.
        layouts: How they are laid out.
        keep: Whether this process wants them; else it returns nothing. One at a time is in its memory.
    """
    found: dict[str, Tensor] = {}
    for name, part in parts.items():
        whole = layouts[name].whole(part) if name in layouts else part
        if keep:
            found[name] = whole.to("cpu", copy=True)
    return found


class Wholes:
    """Reads and writes parameters as wholes, however they are laid out; by all processes together."""

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        """Look how those of ``module`` are laid out now."""
        self._layouts = layouts_of(trainer, module)
        named = module.named_parameters(remove_duplicate=False)
        self._parameters = {clean_name(name): parameter for name, parameter in named}

    def part(self, name: str) -> Tensor:
        """Return what this process holds of the parameter of this clean name, in the same memory."""
        return local(self._parameters[name]).detach()

    def read(self, name: str) -> Tensor:
        """Return all its values."""
        part = self.part(name)
        return self._layouts[name].whole(part) if name in self._layouts else part

    def write(self, name: str, whole: Tensor) -> None:
        """Give it other values, the same in all processes."""
        part = self._layouts[name].part(whole) if name in self._layouts else whole
        self.part(name).copy_(part)
