"""Files that ``torch.save`` writes: read tensor by tensor, and laid out to be filled tensor by tensor."""

from __future__ import annotations

import pickle
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from lightning_tricks.lifecycle.files import saving
from lightning_tricks.lifecycle.stored import as_bytes

__all__ = ["empty_like", "lay_out", "load_content", "load_layout", "offset_of"]


def load_layout(path: Path, *, allow_pickle: bool) -> Any:
    """Return the content of a file with tensors that have no content, but know where in the file it is.

    Of a file whose tensors do not stand in it as they are in memory, one of before torch 1.6 or from a
    machine of the other byte order, the tensors themselves.

    Args:
        path: The file.
        allow_pickle: Whether it may hold more than tensors and plain values, and so run code.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or holds more than it may.
    """
    if not _stands_as_in_memory(path):
        return load_content(path, allow_pickle=allow_pickle)
    with FakeTensorMode():
        return _load(path, allow_pickle=allow_pickle)


def load_content(path: Path, *, allow_pickle: bool) -> Any:
    """Return the content of a file, with tensors mapped from it if that can be; see :func:`load_layout`."""
    return _load(path, allow_pickle=allow_pickle, mmap=_stands_as_in_memory(path))


def _stands_as_in_memory(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            stored = all(record.compress_type == zipfile.ZIP_STORED for record in archive.infolist())
            orders = [name for name in archive.namelist() if name.endswith("/byteorder")]
            return stored and all(archive.read(name).decode() == sys.byteorder for name in orders)
    except (zipfile.BadZipFile, UnicodeDecodeError):
        return False


def _load(path: Path, *, allow_pickle: bool, mmap: bool = False) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=not allow_pickle, mmap=mmap)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # torch raises errors of a dozen kinds for a broken file
        if isinstance(error, pickle.UnpicklingError) and (asked := re.search(r"GLOBAL ([\w.]+)", str(error))):
            raise ValueError(
                f"{path} must hold tensors and plain values alone, got {asked[1]}: a file that holds more "
                "can run any code while it is read; allow_pickle lets it, if you trust whoever wrote the file"
            ) from None
        raise ValueError(f"{path} must be a whole file of torch.save; {error}") from error


def offset_of(tensor: Tensor) -> int | None:
    """Return where the storage of a tensor from :func:`load_layout` begins, in bytes from the file's begin.

    ``None`` for a tensor that has its content.
    """
    offset: int | None = tensor.untyped_storage()._checkpoint_offset
    return offset


def empty_like(shapes: Mapping[str, tuple[torch.Size, torch.dtype]]) -> dict[str, Tensor]:
    """Return tensors of these shapes and types without content, for :func:`lay_out`."""
    with FakeTensorMode():
        return {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}


def lay_out(path: Path, content: Mapping[str, Any], *, allow_pickle: bool) -> dict[str, int]:
    """Write what ``torch.save`` would of ``content``, with holes for the tensors of its ``state_dict``.

    The checksums that the format has for zip tools are not computed, as torch lets one choose with
    ``torch.serialization.set_crc32_options``; it reads none.

    Args:
        path: Where to.
        content: A checkpoint, whose ``state_dict`` holds tensors of :func:`empty_like`.
        allow_pickle: Whether it may hold more than tensors and plain values.

    Returns:
        The byte at which each tensor's content begins.

    Raises:
        ValueError: If tensors stand in it elsewhere than in dicts, lists and tuples.
    """
    with saving(path), torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(content, path)
    with FakeTensorMode():
        written = _load(path, allow_pickle=allow_pickle)
    offsets: dict[int, Tensor] = {}
    for own, there in zip(_tensors(content), _tensors(written), strict=True):
        offset = offset_of(there)
        assert offset is not None
        offsets[offset] = own
    with zipfile.ZipFile(path) as archive:
        storages = [name for name in archive.namelist() if re.search(r"^[^/]+/data/\d+$", name)]
    if len(storages) != len(offsets):
        raise ValueError(
            "the first model's checkpoint must hold tensors in dicts and lists alone, not in objects"
        )
    with path.open("r+b") as stream:
        for offset, own in offsets.items():
            if not isinstance(own, FakeTensor):
                stream.seek(offset)
                stream.write(as_bytes(torch.empty(0, dtype=torch.uint8).set_(own.untyped_storage())))
    places = {
        name: offset_of(value) for name, value in written["state_dict"].items() if isinstance(value, Tensor)
    }
    return {name: place for name, place in places.items() if place is not None}


def _tensors(content: Any) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, Mapping):
        for value in content.values():
            yield from _tensors(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _tensors(value)
