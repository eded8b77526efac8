"""Folders of distributed checkpoints, which the processes of FSDP write together, read tensor by tensor."""

from __future__ import annotations

import importlib
import pickle
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from lightning_tricks.lifecycle.stored import Memory, Stored

__all__ = ["files_of", "is_distributed", "open_folder"]

_METADATA, _REST = ".metadata", "meta.pt"
# What torch writes its description of tensors with; nothing of it runs code.
_TRUSTED = ("torch.distributed.checkpoint.metadata", "torch.distributed._shard.sharded_tensor.metadata")
_PLAIN = {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *(("torch", "Size"), ("torch.serialization", "_get_layout"), ("collections", "OrderedDict")),
    *(("pathlib", name) for name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")),
}


def is_distributed(path: Path) -> bool:
    """Return whether ``path`` is such a folder."""
    return (path / _METADATA).exists()


def files_of(path: Path) -> tuple[Path, ...]:
    """Return the files of such a folder."""
    return tuple(sorted(each for each in path.iterdir() if each.is_file()))


def open_folder(path: Path) -> dict[str, Stored]:
    """Return the tensors of the model in such a folder, by their names in its state dict.

    Raises:
        ValueError: If the folder is damaged, or its description holds more than one of tensors.
    """
    metadata = _description(path)
    tensors = metadata.state_dict_metadata
    # What Lightning calls the model under FSDP2 and FSDP1; a folder of torch's own may hold the model alone.
    calls = ["state_dict.", *(["model."] if (path / _REST).exists() else [])]
    prefix = next((call for call in calls if any(name.startswith(call) for name in tensors)), "")
    found: dict[str, Stored] = {}
    for name, entry in tensors.items():
        if not name.startswith(prefix):
            continue
        if not isinstance(entry, TensorStorageMetadata):
            raise ValueError(f"{name} in {path} must be a tensor, but is not")
        fetch = partial(_read, path, metadata, name, entry)
        place = (path, name)
        found[name.removeprefix(prefix)] = Stored(entry.size, entry.properties.dtype, place, fetch, False)
    return found


def _read(
    path: Path,
    metadata: Metadata,
    name: str,
    entry: TensorStorageMetadata,
    start: int,
    stop: int,
    memory: Memory | None,
) -> Tensor:
    whole = torch.empty(entry.size, dtype=entry.properties.dtype)
    planner, reader = DefaultLoadPlanner(), FileSystemReader(path)
    planner.set_up_planner({name: whole}, metadata, is_coordinator=True)
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    reader.read_data(reader.prepare_local_plan(planner.create_local_plan()), planner).wait()
    return whole.reshape(-1)[start:stop]


def _member(kind: Any, name: str) -> Enum:
    """Return a member of an enumeration: so Python up to 3.11.3 writes it."""
    if not (isinstance(kind, type) and issubclass(kind, Enum) and name in kind.__members__):
        raise ValueError(f"attribute {name!r} describes no tensor")
    return kind[name]


class _Unpickler(pickle.Unpickler):
    """Makes nothing but what describes tensors."""

    def find_class(self, module: str, name: str) -> Any:
        found = None
        if module in _TRUSTED and "." not in name:
            found = getattr(importlib.import_module(module), name, None)
            if not (isinstance(found, type) and found.__module__ in _TRUSTED):
                found = None
        elif (module, name) in _PLAIN:
            found = super().find_class(module, name)
        elif (module, name) == ("builtins", "getattr"):
            found = _member
        elif module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if found is None:
            raise ValueError(f"{module}.{name} describes no tensor")
        return found


def _description(path: Path) -> Metadata:
    try:
        with (path / _METADATA).open("rb") as stream:
            metadata = _Unpickler(stream).load()
        if not isinstance(metadata, Metadata):
            raise ValueError(f"got {type(metadata).__name__}")
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises errors of all kinds
        raise ValueError(f"{path / _METADATA} must describe tensors, and nothing else; {error}") from error
    return metadata
