"""Models opened for reading tensor by tensor, from files of all kinds or from memory."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_tricks.core import checks
from lightning_tricks.core.tensors import Model
from lightning_tricks.lifecycle import safetensors_files, torch_files
from lightning_tricks.lifecycle.checkpoints import average_of, read_sets
from lightning_tricks.lifecycle.stored import OpenFile, Stored, StoredModel, in_file, in_memory

__all__ = ["Readable", "Reading"]

Readable = str | PathLike[str] | Model | nn.Module
"""A path, or a model in memory."""


@dataclass(frozen=True)
class Reading:
    """How models are read.

    Args:
        which: Of a checkpoint with live and averaged weights, ``"live"`` or ``"average"``; ``"state_dict"``
            for those that ``load_state_dict`` would get.
        allow_pickle: Whether files may hold more than tensors and plain values. Reading such a file can run
            any code that whoever wrote it chose: only for files that you trust.
        verify: Whether to compare the content of files with their checksums, for which they are read once
            more. Only files of ``torch.save`` have some.
    """

    which: Literal["state_dict", "live", "average"] = "state_dict"
    allow_pickle: bool = False
    verify: bool = False

    def __post_init__(self) -> None:
        """Check the settings."""
        checks.one_of("which", self.which, ("state_dict", "live", "average"))
        checks.flag("allow_pickle", self.allow_pickle)
        checks.flag("verify", self.verify)

    def open(self, model: Readable, stack: ExitStack, *, label: str) -> StoredModel:
        """Return ``model`` for reading.

        Args:
            model: A file of ``torch.save`` (a checkpoint or a state dict) or of safetensors, an index of
                several (``*.safetensors.index.json``), the folder of a distributed checkpoint, or a state
                dict or module in memory.
            stack: Closes the files.
            label: What to call a model in memory.

        Raises:
            FileNotFoundError: If there is no such file.
            TypeError: If ``model`` is none of these.
            ValueError: If the file is damaged, holds no model, or more than it may.
        """
        if isinstance(model, nn.Module):
            model = model.state_dict()
        if isinstance(model, Mapping):
            return self._model(label, model, ())
        if not isinstance(model, str | PathLike):
            raise TypeError(f"a model must be a path, a state dict or a module, got {model!r:.80}")
        path = Path(model)
        if self.verify:
            _verify(path)
        if path.is_dir():
            return self._folder(path)
        if path.name.endswith(".safetensors.index.json"):
            return self._model(str(path), *safetensors_files.open_index(path, stack))
        if path.suffix == ".safetensors":
            return self._model(str(path), safetensors_files.open_safetensors(path, stack), (path,))
        return self._torch(path, stack)

    def _folder(self, path: Path) -> StoredModel:
        # Imported here, because torch's part for them takes as long to load as most models to fuse.
        from lightning_tricks.lifecycle import distributed_folders

        if not distributed_folders.is_distributed(path):
            raise ValueError(
                f"{path} must be a file, or the folder of a distributed checkpoint, got another folder"
            )
        tensors = distributed_folders.open_folder(path)
        rest = path / "meta.pt"
        if not rest.exists():
            return self._model(str(path), tensors, distributed_folders.files_of(path))
        around = torch_files.TorchFile.load(rest, allow_pickle=self.allow_pickle).content
        chosen = self._chosen({**around, "state_dict": tensors}, path)
        return self._model(str(path), chosen, distributed_folders.files_of(path), around)

    def _torch(self, path: Path, stack: ExitStack) -> StoredModel:
        read = torch_files.TorchFile.load(path, allow_pickle=self.allow_pickle)
        if not isinstance(read.content, Mapping):
            raise ValueError(f"{path} must hold a checkpoint or a state dict, but holds no dict")
        entries = self._chosen(read.content, path)
        file = stack.enter_context(OpenFile(path))
        around: dict[str, Any] = {} if entries is read.content else dict(read.content)
        placed = {name: _placed(read, file, value) for name, value in entries.items()}
        return self._model(str(path), placed, (path,), around)

    def _chosen(self, content: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
        if not isinstance(content.get("state_dict"), Mapping):
            if self.which != "state_dict":
                raise ValueError(f"which must be 'state_dict' for {path}, no checkpoint, got {self.which!r}")
            return content
        if self.which == "average":
            return average_of(content, path, None)
        return read_sets(content)[0] if self.which == "live" else content["state_dict"]

    def _model(
        self,
        label: str,
        entries: Mapping[str, Any],
        files: tuple[Path, ...],
        around: Mapping[str, Any] | None = None,
    ) -> StoredModel:
        tensors = {
            name: _stored(label, name, value)
            for name, value in entries.items()
            if isinstance(value, Tensor | Stored)
        }
        others = {name: value for name, value in entries.items() if name not in tensors}
        if not tensors:
            holds = checks.listed([str(name) for name in entries]) or "nothing"
            raise ValueError(f"{label} must hold a checkpoint or a state dict, got a dict of {holds}")
        return StoredModel(label, tensors, others, files, around or {})


def _verify(path: Path) -> None:
    if path.is_dir() or path.name.endswith((".safetensors", ".safetensors.index.json")):
        raise ValueError(f"verify must be False for {path}, whose format knows no checksums, got True")
    torch_files.check_sums(path)


def _placed(read: torch_files.TorchFile, file: OpenFile, value: Any) -> Any:
    """Return a tensor of a file as one to be read by its place there, if that is known."""
    offset = read.offset(value) if type(value) is Tensor else None
    return value if offset is None else in_file(file, offset, value)


def _stored(label: str, name: str, value: Tensor | Stored) -> Stored:
    if type(name) is not str:
        raise TypeError(f"every name in {label} must be text, got {name!r}")
    if isinstance(value, Stored):
        return value
    if value.is_meta:
        raise ValueError(f"{name} of {label} must hold values, got a tensor on the meta device")
    if value.layout != torch.strided or value.is_quantized:
        raise ValueError(f"{name} of {label} must be a dense tensor, got {value.layout}, {value.dtype}")
    return in_memory(value)
