"""Where a fused model goes: memory, a Lightning checkpoint or a file of safetensors, tensor by tensor."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_tricks.core import checks
from lightning_tricks.fusion.engine import Write
from lightning_tricks.fusion.plan import Step
from lightning_tricks.fusion.provenance import KEY
from lightning_tricks.lifecycle import safetensors_files, torch_files
from lightning_tricks.lifecycle.checkpoints import without_training
from lightning_tricks.lifecycle.files import check_new, written_whole
from lightning_tricks.lifecycle.stored import StoredModel, write_at

__all__ = ["check_output", "checkpoint", "in_memory", "in_order", "safetensors"]


def check_output(
    output: Path, models: Sequence[StoredModel], steps: Sequence[Step], *, overwrite: bool
) -> None:
    """Accept only an output that can be written, and whose writing destroys nothing.

    Raises:
        FileExistsError: If it is there, and may not be replaced.
        IsADirectoryError: If it is a folder.
        OSError: If the disk has no room for it.
        ValueError: If it is one of the inputs, also by another name, or of an unknown kind.
    """
    checks.one_of("the suffix of output", output.suffix, (".ckpt", ".safetensors"))
    for model in models:
        for path in model.files:
            if output.exists() and output.samefile(path):
                raise ValueError(f"output must be none of the inputs, got {output}, which is {model.label}")
    check_new(output, overwrite=overwrite)
    folder = next(each for each in output.absolute().parents if each.exists())
    needed, free = sum(step.stored.nbytes for step in steps), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{needed} bytes are needed in {folder}, but {free} are free")


def in_memory(steps: Sequence[Step]) -> tuple[dict[str, Tensor], Write]:
    """Return tensors for the result, tied where they are, and what fills them."""
    result: dict[str, Tensor] = {}
    for step in steps:
        result |= dict.fromkeys(step.names, torch.empty(step.stored.shape, dtype=step.stored.dtype))

    def write(names: tuple[str, ...], start: int, flat: Tensor) -> None:
        result[names[0]].view(-1)[start : start + flat.numel()] = flat

    return result, write


def in_order(first: StoredModel, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``entries`` in the order of the first model; what it does not have comes last."""
    known = {name: entries[name] for name in first.entries if name in entries}
    return {**known, **entries}


def _shapes(steps: Sequence[Step]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (step.stored.shape, step.stored.dtype) for step in steps for name in step.names}


@contextmanager
def safetensors(
    path: Path, steps: Sequence[Step], others: Mapping[str, Any], provenance: dict[str, Any]
) -> Iterator[Write]:
    """Give what fills a file of safetensors, which is at ``path`` once that is done.

    Tied tensors are in it once for each name, as the format wants it.

    Args:
        path: Where to.
        steps: What will be written.
        others: What the models' state dicts hold beside tensors.
        provenance: How it came about; plain values.

    Raises:
        OSError: If it cannot be written; then ``path`` is as it was.
        ValueError: If there is something that the format cannot hold.
    """
    if others:
        raise ValueError(
            f"output must be a .ckpt, since .safetensors cannot hold {checks.listed(list(others))}"
        )
    metadata = {"format": "pt", KEY: json.dumps(provenance)}
    with written_whole(path) as part:
        offsets = safetensors_files.lay_out(part, _shapes(steps), metadata)
        with _filling(part, offsets) as write:
            yield write


@contextmanager
def checkpoint(
    path: Path,
    steps: Sequence[Step],
    others: Mapping[str, Any],
    provenance: dict[str, Any],
    *,
    first: StoredModel,
    allow_pickle: bool,
) -> Iterator[Write]:
    """Give what fills a checkpoint of Lightning, which is at ``path`` once that is done.

    Args:
        path: Where to.
        steps: What will be written.
        others: What goes into the state dict beside tensors.
        provenance: How it came about; plain values.
        first: The model whose checkpoint gives all else, but not what only training needs.
        allow_pickle: Whether that may be more than tensors and plain values.

    Raises:
        OSError: If it cannot be written; then ``path`` is as it was.
    """
    around = {"pytorch-lightning_version": version("lightning"), **without_training(first.around)}
    holes = torch_files.hollow(_shapes([Step(step.names[:1], step.tensors, step.action) for step in steps]))
    tensors = {name: holes[step.names[0]] for step in steps for name in step.names}
    # A copy, because torch keeps versions of modules beside the entries.
    state = copy(around.get("state_dict", OrderedDict()))
    state.clear()
    state.update(in_order(first, {**tensors, **others}))
    content = {**around, "state_dict": state, KEY: provenance}
    with written_whole(path) as part:
        offsets = torch_files.lay_out(part, content, holes.values(), allow_pickle=allow_pickle)
        with _filling(part, offsets) as write:
            yield write


@contextmanager
def _filling(path: Path, offsets: Mapping[str, int]) -> Iterator[Write]:
    descriptor = os.open(path, os.O_WRONLY)

    def write(names: tuple[str, ...], start: int, flat: Tensor) -> None:
        for offset in {offsets[name] for name in names if name in offsets}:
            write_at(descriptor, offset + start * flat.dtype.itemsize, flat)

    try:
        yield write
    finally:
        os.close(descriptor)
