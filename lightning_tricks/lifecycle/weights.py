"""Between a module and a model, which is a mapping from names to tensors; over processes too.

Where a strategy spreads weights over processes, each has a part of every tensor, and a model of parts. Whole
models are in files and, while these are written or read, in the first process.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_tricks.core.select import clean_name
from lightning_tricks.core.tensors import Model, copy_, local
from lightning_tricks.lifecycle.layouts import layouts_of, module_parts, wholes_of
from lightning_tricks.lifecycle.processes import in_first
from lightning_tricks.lifecycle.strategies import flat_units, reshard

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

__all__ = ["Weights", "checksum", "with_average"]


class Weights:
    """The tensors of a module's state dict, or this process's parts of them.

    Attributes:
        trainer: The Trainer of the run.
        module: Its module.
    """

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        """Look how the strategy has laid the weights out; to be called by all processes together."""
        self.trainer: Trainer = trainer
        self.module: LightningModule = module
        self._layouts = layouts_of(trainer, module)
        self._direct = bool(self._layouts or flat_units(trainer))

    @property
    def sharded(self) -> bool:
        """Whether processes hold parts of some tensors."""
        return bool(self._layouts)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors, or parts, by name; they share memory with the module."""
        reshard(self.trainer)
        if self._direct:  # the state dict of FSDP1 would gather all weights in each process
            return module_parts(self.module)
        return {name: value for name, value in self.module.state_dict().items() if isinstance(value, Tensor)}

    def parameters(self) -> dict[str, Tensor]:
        """Return the parameters, or parts, likewise."""
        reshard(self.trainer)
        return {name: local(value).detach() for name, value in self.module.named_parameters()}

    def wholes(self) -> dict[str, Tensor]:
        """Return what stands for the whole tensors: their shapes and types, without content."""
        laid = self._layouts
        return {
            name: torch.empty(
                laid[clean_name(name)].shape if clean_name(name) in laid else value.shape,
                dtype=value.dtype,
                device="meta",
            )
            for name, value in self.tensors().items()
        }

    def check_numbers(self) -> None:
        """Accept a module of numbers, which may be infinite, as those of masks are.

        Raises:
            ValueError: If a tensor holds what is none, so that models of it could not be fused; names it.
        """
        for name, value in self.tensors().items():
            if (value.is_floating_point() or value.is_complex()) and value.isnan().any():
                raise ValueError(f"{name} must hold numbers for models to be fused, got NaN before training")

    def put(self, model: Model) -> None:
        """Copy the tensors of ``model``, or parts, into the module; what it does not name stays.

        Raises:
            ValueError: If the module has no tensor of a name.
        """
        own = self.tensors()
        for name in model:
            if name not in own:
                kind = type(self.module).__name__
                raise ValueError(f"{name} must be in the state dict of {kind}, but it is not")
        if self._direct:
            copy_([own[name] for name in model], list(model.values()))
        else:
            # Not strict, because a module's state dict may leave out what it never trains.
            self.module.load_state_dict({**self.module.state_dict(), **model}, strict=False)

    def gather(self, model: Model) -> Model:
        """Return the whole tensors of which the processes hold parts in ``model``: in the first process.

        To be called by all processes together. All see one tensor after the other; the first collects them
        on the CPU, the others get nothing. What each process holds whole is that of the first.
        """
        first = self.trainer.is_global_zero
        if not self._layouts:
            return model if first else {}
        return wholes_of(model, self._layouts, keep=first)

    def spread(self, read: Callable[[], Model]) -> dict[str, Tensor]:
        """Return this process's parts, on the CPU, of the whole tensors that the first gets from ``read``.

        To be called by all processes together; they see one tensor after the other. Tied ones stay tied.
        """
        whole: dict[str, Tensor] = {}

        def names() -> dict[str, str]:
            whole.update(read())
            first: dict[object, str] = {}
            places = {name: (t.data_ptr(), t.shape, t.stride(), t.dtype) for name, t in whole.items()}
            return {name: first.setdefault(place, name) for name, place in places.items()}

        parts: dict[str, Tensor] = {}
        for name, tied in in_first(self.trainer, names).items():
            layout = self._layouts.get(clean_name(name))
            if tied != name and layout is self._layouts.get(clean_name(tied)):
                parts[name] = parts[tied]
                continue
            tensor = self.trainer.strategy.broadcast(whole.get(name))
            assert tensor is not None
            parts[name] = tensor if layout is None else layout.part(tensor).cpu()
        return parts


def checksum(model: Model) -> str:
    """Return the CRC-32 of the names, types, shapes and bytes of ``model``, as eight hexadecimal digits.

    It tells contents apart and finds damage, each with one miss in 4e9; against forgery it is no help.

    Example:
        >>> checksum({"w": torch.tensor([1.0, 2.0])})
        '5e507874'
    """
    value = 0
    for name, tensor in model.items():
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        # As bytes first, because numpy does not know all of torch's types.
        content = tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8)
        value = zlib.crc32(content.numpy().data, value)
    return f"{value:08x}"


def with_average(live: Model, average: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return ``live`` with averaged tensors in place of those that they average, in their types.

    Args:
        live: Tensors, or parts, by their names in a state dict.
        average: Likewise, by the same names without those of wrappers; ``None`` if there are none yet.

    Raises:
        ValueError: If an averaged tensor has no counterpart.
    """
    model = dict(live)
    names = {clean_name(name): name for name in live}
    for name, value in (average or {}).items():
        if name not in names:
            raise ValueError(f"every averaged tensor must be in the module's state dict, got {name}")
        model[names[name]] = local(value).to(live[names[name]].dtype)
    return model
