"""Between a module and a model, which is a mapping from names to tensors."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_tricks.core.select import clean_name
from lightning_tricks.fusion.methods import Model

__all__ = ["checksum", "put_", "tensors_of", "with_average"]


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the module's state dict by name; they share memory with the module."""
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


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
        content = tensor.detach().cpu().reshape(-1).view(torch.uint8)
        value = zlib.crc32(content.numpy().data, value)
    return f"{value:08x}"


def put_(module: nn.Module, model: Model) -> None:
    """Copy the tensors of ``model`` into ``module``; what it does not name stays.

    Raises:
        ValueError: If ``module`` has no tensor of a name.
    """
    own = module.state_dict()
    for name in model:
        if name not in own:
            raise ValueError(f"{name} must be in the state dict of {type(module).__name__}, but it is not")
    # Not strict, because a module's state dict may leave out what it never trains.
    module.load_state_dict({**own, **model}, strict=False)


def with_average(live: Model, average: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return ``live`` with averaged tensors in place of those that they average, in their types.

    Args:
        live: Tensors by their names in a state dict.
        average: Tensors by the same names without those of wrappers; ``None`` if there are none yet.

    Raises:
        ValueError: If an averaged tensor has no counterpart.
    """
    model = dict(live)
    names = {clean_name(name): name for name in live}
    for name, value in (average or {}).items():
        if name not in names:
            raise ValueError(f"every averaged tensor must be in the module's state dict, got {name}")
        model[names[name]] = value.to(live[names[name]].dtype)
    return model
