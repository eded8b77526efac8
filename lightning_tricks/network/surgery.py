"""When layers may still change, and random numbers for what is put in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

__all__ = ["check_unwrapped", "seeded"]

_WRAPPERS = (DistributedDataParallel, FullyShardedDataParallel, FSDPModule)


def check_unwrapped(module: nn.Module, layers: Iterable[nn.Module], call: str) -> None:
    """Refuse to change ``layers`` of a module that is wrapped or sharded, whose wrapper would not notice.

    Args:
        module: Holds them.
        layers: Those that would change.
        call: The function to call before, for the error.

    Raises:
        ValueError: If it is.
    """
    kinds: list[type] = [type(part) for part in module.modules() if isinstance(part, _WRAPPERS)]
    kinds += [DTensor for layer in layers for p in layer.parameters() if isinstance(p, DTensor)]
    if kinds:
        raise ValueError(
            f"layers must change before weights are sharded or copied, got {kinds[0].__name__}: call "
            f"lightning_tricks.{call} in configure_model, before fully_shard"
        )


@contextmanager
def seeded(seed: int, devices: Iterable[torch.device]) -> Iterator[None]:
    """Draw from ``seed`` within the context, on the CPU and on ``devices``, and go on as before after it."""
    others = {device for device in devices if device.type != "cpu"}
    kind = next((device.type for device in others), "cuda")
    with torch.random.fork_rng(list(others), device_type=kind):
        torch.manual_seed(seed)
        yield
