"""The safetensors format, read, written, and laid out to be filled tensor by tensor.

    8 bytes: the length of the header    the header: JSON    the tensors' bytes, one after the other

The library that goes with the format gives no place of a tensor within the file, and writes only what is in
memory as a whole; both would cost what streaming saves.

Reference: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_tricks.lifecycle.files import written_whole
from lightning_tricks.lifecycle.stored import OpenFile, Stored, in_file, in_memory, write_at

__all__ = ["lay_out", "open_index", "open_safetensors", "save_safetensors"]

_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "C64": torch.complex64,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


def open_safetensors(path: Path, stack: ExitStack) -> dict[str, Stored]:
    """Return the tensors of a file.

    Args:
        path: The file.
        stack: Closes it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged.
    """
    file = stack.enter_context(OpenFile(path))
    size = path.stat().st_size
    try:
        length = int.from_bytes(bytes(file.read(0, 8, torch.uint8).tolist()), "little")
        if length > size - 8:
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        header = json.loads(bytes(file.read(8, length, torch.uint8).numpy()))
        header.pop("__metadata__", None)
        return {name: _entry(file, 8 + length, size, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"{path} must be a whole file of safetensors; {error}") from error


def _entry(file: OpenFile, begin: int, size: int, entry: Mapping[str, Any]) -> Stored:
    start, stop = entry["data_offsets"]
    like = torch.empty(entry["shape"], dtype=_TYPES[entry["dtype"]], device="meta")
    if not 0 <= start <= stop <= size - begin or stop - start != like.numel() * like.dtype.itemsize:
        raise ValueError(
            f"a tensor of shape {tuple(like.shape)} at bytes {start} to {stop} of {size - begin}"
        )
    return in_file(file, begin + start, like)


def open_index(path: Path, stack: ExitStack) -> tuple[dict[str, Stored], tuple[Path, ...]]:
    """Return the tensors of several files, which the index ``path`` names, and all these files.

    Raises:
        FileNotFoundError: If it or one of the files is not there.
        ValueError: If it is damaged, or names a tensor that its file does not hold.
    """
    try:
        places: dict[str, str] = json.loads(path.read_text("utf-8"))["weight_map"]
        shards = {place: path.with_name(place) for place in sorted(set(places.values()))}
        tensors = {place: open_safetensors(shard, stack) for place, shard in shards.items()}
        return {name: tensors[place][name] for name, place in places.items()}, (path, *shards.values())
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} must be an index of safetensors files; {error!r}") from error


def lay_out(
    path: Path, shapes: Mapping[str, tuple[torch.Size, torch.dtype]], metadata: Mapping[str, str]
) -> dict[str, int]:
    """Write a file with holes for its tensors.

    Args:
        path: Where to.
        shapes: Shape and type of each.
        metadata: What the header says beside.

    Returns:
        The byte at which each tensor's content begins.

    Raises:
        ValueError: If the format does not know a type.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end, ends = 0, {}
    # Wide types first, so that each tensor begins at a multiple of its type's width.
    for name in sorted(shapes, key=lambda name: -shapes[name][1].itemsize):
        shape, dtype = shapes[name]
        if dtype not in _NAMES:
            raise ValueError(f"{name} must have a type that safetensors knows, got {dtype}")
        start, end = end, end + shape.numel() * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        ends[name] = start
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    return {name: 8 + len(text) + start for name, start in ends.items()}


def save_safetensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Write ``state``, which is at ``path`` once all is written; tied tensors once for each name.

    Raises:
        OSError: If it cannot be written; then ``path`` is as it was.
        ValueError: If the format cannot hold an entry.
    """
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} must be a tensor for safetensors, got {value!r}")
    shapes = {name: (value.shape, value.dtype) for name, value in state.items()}
    with written_whole(path) as part:
        offsets = lay_out(part, shapes, {"format": "pt"})
        with part.open("r+b") as stream:
            for name, value in state.items():
                write_at(stream.fileno(), offsets[name], in_memory(value).read())
