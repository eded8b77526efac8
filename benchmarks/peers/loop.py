"""A plain loop of training, as other packages are used in, which says where it is."""

from __future__ import annotations

import collections.abc
import contextlib
import itertools
import logging
import sys
import textwrap
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.peers.parts import cut, without_its_door
from benchmarks.peers.small import sgd
from tests.toys import Loader

__all__ = ["composers", "looped", "timms", "told"]

Batches = list[tuple[Tensor, Tensor]]


def shuffled(epochs: int = 3) -> Batches:
    """Return the batches that a run of :func:`~benchmarks.peers.small.fitted` gets."""
    loader, batches = Loader(), []
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        batches += list(loader)
    return batches


def looped(
    module: nn.Module,
    *,
    before_step: Callable[[], Any] = lambda: None,
    after_step: Callable[[], Any] = lambda: None,
    batches: Batches | None = None,
) -> nn.Module:
    """Return ``module`` after SGD, which calls what a peer says to call."""
    optimizer = sgd(module)
    for inputs, labels in shuffled() if batches is None else batches:
        optimizer.zero_grad()
        cross_entropy(module(inputs), labels).backward()
        before_step()
        optimizer.step()
        after_step()
    return module


def timms() -> dict[str, Any]:
    """Return what is timm's."""
    without_its_door("timm", "timm.utils", "timm.data")
    found = {
        "ModelEmaV3": "timm.utils.model_ema",
        "adaptive_clip_grad": "timm.utils.agc",
        "CosineLRScheduler": "timm.scheduler",
        "Mixup": "timm.data.mixup",
    }
    return {name: getattr(import_module(module), name) for name, module in found.items()}


def composers() -> dict[str, Any]:
    """Return algorithms of Composer's; names that they use only elsewhere stand for nothing."""
    without_its_door("composer", "composer.core", "composer.utils")
    sys.modules["composer.utils"].StringEnum = import_module("composer.utils.string_enum").StringEnum  # type: ignore[attr-defined]
    given = {name: getattr(import_module(f"composer.core.{module}"), name) for name, module in _CORE.items()}
    given |= {"torch": torch, "Any": Any, "partial": partial, "warnings": warnings, "textwrap": textwrap}
    given |= {"contextlib": contextlib, "itertools": itertools, "F": torch.nn.functional}
    given |= {
        "log": logging.getLogger("composer"),
        "CheckpointSaver": type(None),
        "_VALID_MODES": ("resize",),
    }
    given["misc"] = SimpleNamespace(is_model_fsdp=lambda _: False)
    given["ClosureGradScaler"] = lambda: None
    names = ("ensure_targets_one_hot", "infer_target_type", "check_for_index_targets", "_one_hot")
    given |= cut("mosaicml", "composer/loss/utils.py", *names, torch=torch, warnings=warnings)
    given |= cut("mosaicml", "composer/utils/iter_helpers.py", "ensure_tuple", collections=collections)
    for folder, parts in _ALGORITHMS.items():
        given |= cut("mosaicml", f"composer/algorithms/{folder}/{folder}.py", *parts, **given)
    return given


_CORE = {"Event": "event", "Time": "time", "TimeUnit": "time", "Timestamp": "time", "Algorithm": "algorithm"}
_ALGORITHMS = {
    "ema": ("EMA", "EMAParameters", "compute_ema", "get_model_context_manager"),
    "gradient_clipping": ("GradientClipping", "apply_gradient_clipping"),
    "label_smoothing": ("LabelSmoothing", "smooth_labels"),
    "progressive_resizing": ("ProgressiveResizing", "resize_batch", "_make_resize"),
    "sam": ("SAM", "SAMOptimizer"),
}


def told(algorithm: Any, module: nn.Module, batches: Batches | None = None) -> Any:
    """Train ``module`` and tell an algorithm of Composer's events, in the order of Composer's Trainer.

    Returns:
        What Composer calls the state, with the ``sizes`` of the inputs.
    """
    names = composers()
    event, time = names["Event"], names["Time"]
    batches = shuffled() if batches is None else batches
    state = SimpleNamespace(model=module, optimizers=(sgd(module),), callbacks=[], fsdp_config_version=None)
    state.timestamp, state.sizes = names["Timestamp"](), []
    state.get_elapsed_duration = lambda: state.timestamp.batch / time(len(batches), "ba")
    state.batch_get_item = lambda key: state.batch[key]
    state.batch_set_item = lambda key, value: state.batch.__setitem__(key, value)

    def tell(name: str) -> None:
        if algorithm.match(event[name], state):
            algorithm.apply(event[name], state, None)

    def closure(**_: Any) -> Tensor:
        state.optimizers[0].zero_grad()
        state.outputs = module(state.batch[0])
        tell("BEFORE_LOSS")
        loss = cross_entropy(state.outputs, state.batch[1])
        tell("AFTER_LOSS")
        loss.backward()
        tell("AFTER_TRAIN_BATCH")
        return loss

    for name in ("INIT", "AFTER_LOAD", "FIT_START"):
        tell(name)
    for batch in batches:
        state.batch = list(batch)
        tell("AFTER_DATALOADER")
        state.sizes.append(state.batch[0].shape[-1])
        tell("BATCH_START")
        state.optimizers[0].step(closure)
        state.timestamp = state.timestamp.to_next_batch()
        tell("BATCH_END")
    return state
