"""Models whose tensors are read when they are asked for, and only as much of them as is asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

__all__ = ["Memory", "OpenFile", "Stored", "StoredModel", "as_bytes", "in_file", "in_memory", "write_at"]


class Memory:
    """Memory to read into again and again, because new memory costs a page fault for every 4 KiB."""

    def __init__(self) -> None:
        """Begin with none."""
        self._view = memoryview(b"")

    def bytes(self, count: int) -> memoryview:
        """Return so many bytes: the first of those that were returned before, if they were enough."""
        if count > len(self._view):
            self._view = memoryview(b"")  # given back before more is taken
            self._view = as_bytes(torch.empty(count, dtype=torch.uint8))
        return self._view[:count]


@dataclass(frozen=True)
class Stored:
    """A tensor in a file or in memory.

    Attributes:
        shape: Its shape.
        dtype: Its type.
        place: Where it is; tensors of one model in the same place are tied.
        fetch: Returns its entries from one index to another, counted as if it were flat; may put them into
            the memory, if there is one.
        sliceable: Whether a part of it can be read without the rest.
    """

    shape: torch.Size
    dtype: torch.dtype
    place: Hashable
    fetch: Callable[[int, int, Memory | None], Tensor] = field(repr=False)
    sliceable: bool = True

    @property
    def numel(self) -> int:
        """The number of entries."""
        return self.shape.numel()

    @property
    def nbytes(self) -> int:
        """The bytes of its entries."""
        return self.numel * self.dtype.itemsize

    def read(self, start: int = 0, stop: int | None = None, memory: Memory | None = None) -> Tensor:
        """Return entries ``start`` to ``stop``, by default all, as a flat tensor on the CPU.

        Args:
            start: The first.
            stop: Behind the last.
            memory: What they may be put into; then they stay only until it is used again.

        Raises:
            OSError: If the file cannot be read, or has become shorter.
        """
        return self.fetch(start, self.numel if stop is None else stop, memory)


@dataclass(frozen=True)
class StoredModel:
    """A model of such tensors.

    Attributes:
        label: What it is called in messages: the path that was given, or "model 0".
        tensors: Its tensors by their names.
        others: What its state dict holds beside tensors.
        files: Those that it is read from; none for one in memory.
        around: The checkpoint that the state dict stands in, with tensors mapped from the file; empty where
            there is none.
    """

    label: str
    tensors: Mapping[str, Stored]
    others: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    around: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def entries(self) -> list[str]:
        """The names in its state dict."""
        return [*self.tensors, *self.others]

    @property
    def nbytes(self) -> int:
        """The bytes of its tensors; tied ones count once."""
        places = {tensor.place: tensor.nbytes for tensor in self.tensors.values()}
        return sum(places.values())

    @property
    def size(self) -> int:
        """The bytes of its files; of one in memory those of its tensors."""
        return sum(path.stat().st_size for path in self.files) if self.files else self.nbytes


class OpenFile:
    """A file for reading at any place, by several threads; a context that closes it."""

    def __init__(self, path: Path) -> None:
        """Open ``path``.

        Raises:
            OSError: If it is not there, or may not be read.
        """
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def read(self, offset: int, count: int, dtype: torch.dtype, memory: Memory | None = None) -> Tensor:
        """Return ``count`` numbers that begin at byte ``offset``, flat, in ``memory`` or new one."""
        # Read into, because a mapped file costs a page fault for every 4 to 64 KiB.
        view, done = (memory or Memory()).bytes(count * dtype.itemsize), 0
        while done < len(view):
            got = os.preadv(self._descriptor, [view[done:]], offset + done)
            if got == 0:
                raise OSError(f"{self.path} must hold {offset + len(view)} bytes, but ends before")
            done += got
        return torch.frombuffer(view, dtype=dtype) if count else torch.empty(0, dtype=dtype)


def as_bytes(flat: Tensor) -> memoryview:
    """Return the memory of a flat tensor on the CPU."""
    return flat.view(torch.uint8).numpy().data


def write_at(descriptor: int, offset: int, flat: Tensor) -> None:
    """Write the entries of a flat tensor on the CPU into an open file, from byte ``offset`` on.

    Raises:
        OSError: If they cannot be written.
    """
    view, done = as_bytes(flat.contiguous()), 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], offset + done)


def in_file(file: OpenFile, offset: int, like: Tensor) -> Stored:
    """Return the tensor in ``file`` whose storage begins at byte ``offset``.

    Args:
        file: Holds the bytes of the storage as they are in memory.
        offset: Where they begin.
        like: A tensor without content, which has the shape, type, strides and place within the storage.
    """
    begin = offset + int(like.storage_offset()) * like.dtype.itemsize
    place = (file.path, begin, like.shape, like.stride(), like.dtype)
    if like.is_contiguous():
        return Stored(like.shape, like.dtype, place, partial(_read_flat, file, begin, like.dtype))
    fetch = partial(_read_strided, file, begin, like)
    return Stored(like.shape, like.dtype, place, fetch, sliceable=False)


def _read_flat(
    file: OpenFile, begin: int, dtype: torch.dtype, start: int, stop: int, memory: Memory | None
) -> Tensor:
    return file.read(begin + start * dtype.itemsize, stop - start, dtype, memory)


def _read_strided(
    file: OpenFile, begin: int, like: Tensor, start: int, stop: int, memory: Memory | None
) -> Tensor:
    # Of an empty tensor, which is contiguous, there is nothing to stride over.
    extent = 1 + sum((size - 1) * step for size, step in zip(like.shape, like.stride(), strict=True))
    flat = file.read(begin, extent, like.dtype, memory)
    return flat.as_strided(like.shape, like.stride()).reshape(-1)[start:stop]


def in_memory(tensor: Tensor) -> Stored:
    """Return ``tensor`` likewise."""
    tensor = tensor.detach()
    place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
    return Stored(tensor.shape, tensor.dtype, place, partial(_part, tensor), tensor.is_contiguous())


def _part(tensor: Tensor, start: int, stop: int, memory: Memory | None) -> Tensor:
    return tensor.reshape(-1)[start:stop].cpu().resolve_conj().resolve_neg()
