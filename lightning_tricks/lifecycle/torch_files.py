"""Files that ``torch.save`` writes: read tensor by tensor, and laid out to be filled tensor by tensor."""

from __future__ import annotations

import os
import pickle
import re
import struct
import sys
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from lightning_tricks.lifecycle.files import saving
from lightning_tricks.lifecycle.stored import as_bytes

__all__ = ["TorchFile", "check_sums", "hollow", "lay_out"]


@dataclass(frozen=True)
class TorchFile:
    """A file of ``torch.save``.

    Attributes:
        content: What it holds. Tensors are mapped from it, and read where they are used.
        base: The address at which its first byte is mapped; ``None`` if that is not known, or it is not
            mapped: a file of before torch 1.6, or of a machine with the other byte order.
    """

    content: Any
    base: int | None

    @classmethod
    def load(cls, path: Path, *, allow_pickle: bool) -> TorchFile:
        """Return the file at ``path``.

        Args:
            path: The file.
            allow_pickle: Whether it may hold more than tensors and plain values, and so run code.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged, or holds more than it may.
        """
        records = _records(path)
        content = _load(path, allow_pickle=allow_pickle, mmap=records is not None)
        storages = {
            tensor.untyped_storage().data_ptr() for tensor in _tensors(content) if _has_content(tensor)
        }
        # In this order they fit, if none of them stands within an object.
        if records is None or not storages or len(storages) != len(records):
            return cls(content, None)
        base = min(storages) - min(records)
        return cls(content, base if {place - base for place in storages} == records else None)

    def offset(self, tensor: Tensor) -> int | None:
        """Return at which byte the storage of a tensor of it begins; ``None`` if that is not known."""
        if self.base is None or not _has_content(tensor):
            return None
        return tensor.untyped_storage().data_ptr() - self.base


def _has_content(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.untyped_storage().nbytes() > 0


def _records(path: Path) -> set[int] | None:
    """Return the bytes at which the storages in a file begin, if they stand in it as they are in memory."""
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
            orders = [name for name in archive.namelist() if name.endswith("/byteorder")]
            if any(archive.read(name).decode() != sys.byteorder for name in orders):
                return None
            records = archive.infolist()
            if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                return None
            storages = [each for each in records if re.fullmatch(r".*/data/\d+", each.filename)]
            return {_begin(stream, each.header_offset) for each in storages if each.file_size > 0}
    except (zipfile.BadZipFile, UnicodeDecodeError, struct.error):
        return None


def _begin(stream: Any, header: int) -> int:
    # The header of an entry of a zip file ends with its name and an extra field; their lengths come before.
    stream.seek(header + 26)
    name, extra = struct.unpack("<HH", stream.read(4))
    return header + 30 + int(name) + int(extra)


def _load(path: Path, *, allow_pickle: bool, mmap: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=not allow_pickle, mmap=mmap)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # torch raises errors of a dozen kinds for a broken file
        if isinstance(error, pickle.UnpicklingError) and (asked := re.search(r"GLOBAL ([\w.]+)", str(error))):
            raise ValueError(
                f"{path} must hold tensors and plain values alone, got {asked[1]}: a file that holds more "
                "can run any code while it is read; if you trust whoever wrote it, allow_pickle lets it, or "
                "load it yourself where that is no setting"
            ) from None
        raise ValueError(f"{path} must be a whole file of torch.save, which it is not") from error


def check_sums(path: Path) -> None:
    """Accept a file of ``torch.save`` whose content has the checksums that stand in it.

    Raises:
        ValueError: If it has others, or holds none: then it is of before torch 1.6, or was written without
            (:func:`lay_out`).
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = [record for record in archive.infolist() if record.file_size > 0]
            if any(record.CRC == 0 for record in records):
                raise ValueError(f"{path} must hold checksums to be verified, but was written without")
            if bad := archive.testzip():
                raise ValueError(f"{path} must be as it was written, but {bad} in it has another checksum")
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} must be an archive of torch.save to be verified; {error}") from None


def hollow(shapes: Mapping[str, tuple[torch.Size, torch.dtype]]) -> dict[str, Tensor]:
    """Return tensors of these shapes and types that take no memory, for :func:`lay_out`.

    They are mapped from a file of nothing but holes. Torch's own tensors without content would take longer to
    load their code than most models to fuse.
    """
    sizes = {name: shape.numel() * dtype.itemsize for name, (shape, dtype) in shapes.items()}
    with TemporaryDirectory() as folder:
        file = Path(folder) / "holes"
        file.touch()
        os.truncate(file, max(sizes.values(), default=0))
        mapped = {
            name: torch.UntypedStorage.from_file(str(file), True, size)
            for name, size in sizes.items()
            if size
        }
    return {
        name: torch.empty(0, dtype=dtype).set_(mapped[name], 0, shape)  # type: ignore[call-overload]
        if name in mapped
        else torch.empty(shape, dtype=dtype)
        for name, (shape, dtype) in shapes.items()
    }


def lay_out(
    path: Path, content: Mapping[str, Any], holes: Collection[Tensor], *, allow_pickle: bool
) -> dict[str, int]:
    """Write what ``torch.save`` would of ``content``, with holes for some tensors of its ``state_dict``.

    The checksums that the format has for zip tools are not computed, as torch lets one choose with
    ``torch.serialization.set_crc32_options``; it reads none.

    Args:
        path: Where to.
        content: A checkpoint.
        holes: Those of its tensors that are not written, such as :func:`hollow` returns.
        allow_pickle: Whether it may hold more than tensors and plain values.

    Returns:
        The byte at which each tensor's content begins, of those that are not empty.

    Raises:
        ValueError: If tensors stand in it elsewhere than in dicts, lists and tuples.
    """
    # Through a stream, for what the disk says of a path torch does not pass on.
    with saving(path), torch.serialization.skip_data(), path.open("wb") as stream:
        torch.save(content, stream)
    written = TorchFile.load(path, allow_pickle=allow_pickle)
    places = [written.offset(there) for there in _tensors(written.content)]
    if written.base is None and any(map(_has_content, _tensors(written.content))):
        raise ValueError(
            "the first model's checkpoint must hold tensors in dicts and lists alone, not in objects"
        )
    left_out = {id(tensor) for tensor in holes}
    with path.open("r+b") as stream:
        for own, place in zip(_tensors(content), places, strict=True):
            if place is not None and id(own) not in left_out:
                stream.seek(place)
                stream.write(as_bytes(torch.empty(0, dtype=torch.uint8).set_(own.untyped_storage())))
    state = written.content["state_dict"].items()
    offsets = {name: written.offset(there) for name, there in state if isinstance(there, Tensor)}
    return {name: offset for name, offset in offsets.items() if offset is not None}


def _tensors(content: Any) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, Mapping):
        for value in content.values():
            yield from _tensors(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _tensors(value)
