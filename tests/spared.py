"""Work of Lightning that comes to nothing: a quarter of the time of these tests, and left out in them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, lru_cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from lightning.fabric.utilities import distributed, registry
from lightning.pytorch import LightningModule
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultMetric
from lightning.pytorch.tuner import batch_size_scaling
from lightning.pytorch.utilities import argparse, signature_utils
from lightning_utilities.core.enums import StrEnum
from torch.distributed import device_mesh

# For each Trainer, the files of all installed packages are read for plugins that they may bring.
registry.entry_points = cache(registry.entry_points)

# For each logged value, all that is held of it is copied to where it is.
copy_to = _ResultMetric.to


def to(self: _ResultMetric, device: Any, *args: Any, **options: Any) -> _ResultMetric:
    """Do as before, unless it is there."""
    here = self.is_tensor and self.value.device == device
    return self if here else copy_to(self, device, *args, **options)


_ResultMetric.to = to

# For each Trainer its class's signature is worked out, and for each logged value that of ``training_step``.
argparse.inspect = SimpleNamespace(signature=lru_cache(inspect.signature))
argspec = lru_cache(inspect.getfullargspec)  # of functions: one of bound methods would keep their objects


def getfullargspec(function: Callable[..., Any]) -> inspect.FullArgSpec:
    """Do as before, once for each function."""
    return argspec(getattr(function, "__func__", function))


signature_utils.inspect = SimpleNamespace(getfullargspec=getfullargspec)

# Dozens of times for each batch, the lower-case names of two stages are compared.
compare = StrEnum.__eq__


def equal(self: StrEnum, other: object) -> bool:
    """Do as before; members of one enumeration are one or differ."""
    return self is other if type(self) is type(other) else compare(self, other)


StrEnum.__eq__ = equal

# For each batch size that is tried, garbage is looked for everywhere, which takes longer than the trial.
batch_size_scaling.garbage_collection_cuda = lambda: None

# For each hook of each batch, a word is set on the module as if it were a part of it.
set_any = LightningModule.__setattr__


def set_attribute(self: LightningModule, name: str, value: Any) -> None:
    """Do as before; the word goes where it would have come to in the end."""
    if name == "_current_fx_name":
        self.__dict__[name] = value
    else:
        set_any(self, name, value)


LightningModule.__setattr__ = set_attribute

# Around each hook of each callback, a generator is made for a profiler that measures nothing.
PassThroughProfiler.profile = lambda *_: nullcontext()

# For each batch, all processes ask the first whether it was told to end; nobody tells it here.
_TrainingEpochLoop._broadcast_sigterm_tensor = lambda _: None

# Before each reduction of a logged value all wait for all, as they then do in the reduction.
reduce = distributed._sync_ddp


def reduced(*args: Any, **options: Any) -> Any:
    """Do as before, without the wait."""
    with patch.object(torch.distributed, "barrier", lambda **_: None):
        return reduce(*args, **options)


distributed._sync_ddp = reduced

# For each Trainer over shards, groups of processes and their threads are made that are never taken down.
device_mesh.init_device_mesh = cache(device_mesh.init_device_mesh)
