"""What a module holds, put back as it was after something that only looks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lightning_tricks.core.tensors import copy_, local

__all__ = ["kept_attributes", "kept_generators", "kept_tensors"]


@contextmanager
def kept_tensors(module: nn.Module, *, learning: bool) -> Iterator[None]:
    """Put the values of all buffers back, and those of parameters.

    A step may write into a buffer, or put another tensor in its place.

    Args:
        module: Holds them, with all its children.
        learning: Whether parameters that learn are put back too, or the frozen ones alone.
    """
    places = [
        (held, name, value)
        for part in module.modules()
        for held in (part._buffers, part._parameters)
        for name, value in held.items()
        if value is not None and (held is part._buffers or learning or not value.requires_grad)
    ]
    # One that has several names is copied once.
    tensors = [local(value).detach() for value in {id(value): value for *_, value in places}.values()]
    copies = [tensor.clone() for tensor in tensors]
    try:
        yield
    finally:
        for held, name, value in places:
            held[name] = value  # type: ignore[assignment]  # what stood there
        copy_(tensors, copies)


@contextmanager
def kept_generators(owner: object) -> Iterator[None]:
    """Put the random number generators back that ``owner`` has as attributes, or modules within it."""
    parts = owner.modules() if isinstance(owner, nn.Module) else [owner]
    own: list[Tensor | torch.Generator] = [each for part in parts for each in vars(part).values()]
    states = [(each, each.get_state()) for each in own if isinstance(each, torch.Generator)]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)


@contextmanager
def kept_attributes(owner: object) -> Iterator[None]:
    """Let ``owner`` have the attributes that it had; objects that they are stay as they have become."""
    former = dict(vars(owner))
    try:
        yield
    finally:
        for name in vars(owner).keys() - former.keys():
            del vars(owner)[name]
        vars(owner).update(former)
