"""Arithmetic on large tensors, piece by piece in double precision: little memory, and rounded once.

Pieces stay in the processor's cache, and lie in the same memory one after the other, because new memory costs
page faults. Their sums are taken in one order, so that results do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

__all__ = [
    "LARGE",
    "combination",
    "difference",
    "inner_products",
    "pieces",
    "piecewise",
    "reals",
    "weighted",
    "wide",
]

PIECE = 32_000
"""Entries of a piece: fewer than torch sums with several threads."""

LARGE = 1 << 16
"""Entries of a piece of which nothing is summed: more, because each has its cost in Python."""


def reals(tensor: Tensor) -> Tensor:
    """Return the entries of ``tensor`` in a row; complex ones as real and imaginary part."""
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1)


def difference(tensor: Tensor, base: Tensor) -> Tensor:
    """Return the entries (:func:`reals`) of ``tensor`` less those of ``base``, in at least float32."""
    return wide(reals(tensor)) - wide(reals(base))


def wide(tensor: Tensor) -> Tensor:
    """Return a real ``tensor`` in at least float32; types of 8 bits, which torch promotes to none, too."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)


def pieces(
    tensors: Sequence[Tensor], dtype: torch.dtype = torch.float64, size: int = PIECE
) -> Iterator[tuple[int, Tensor]]:
    """Yield where a piece starts, and the piece, of shape (len(tensors), entries); it lasts till the next.

    Args:
        tensors: At least one; of one shape. Their entries are :func:`reals`.
        dtype: Of the pieces, which share no memory with the tensors.
        size: Entries of a piece.
    """
    rows = [reals(tensor) for tensor in tensors]
    count = rows[0].numel()
    memory = rows[0].new_empty((len(rows), min(size, count)), dtype=dtype)
    for start in range(0, count, size):
        piece = memory[:, : count - start]
        for part, row in zip(piece, rows, strict=True):
            part.copy_(row[start : start + size])
        yield start, piece


@torch.no_grad()
def piecewise(
    tensors: Sequence[Tensor], combine: Callable[[int, list[Tensor]], Tensor], size: int = PIECE
) -> Tensor:
    """Return what ``combine`` makes of the pieces of ``tensors``, with their shape and type.

    Args:
        tensors: At least one; floating or complex, of one shape and type.
        combine: Gets where a piece starts and the piece of each tensor, in double precision, which it may
            change; returns as many entries.
        size: Entries of a piece.
    """
    result = torch.empty_like(tensors[0], memory_format=torch.contiguous_format)
    row = reals(result)
    for start, parts in pieces(tensors, size=size):
        row[start : start + size] = combine(start, [*parts])
    return result


@torch.no_grad()
def combination(tensors: Sequence[Tensor], coefficients: Sequence[float], divisor: float = 1.0) -> Tensor:
    """Return the sum of ``coefficients[i] * tensors[i]`` over ``divisor``, with their shape and type.

    Example:
        >>> combination([torch.ones(2), torch.tensor([0.0, 1.0])], [2.0, -1.0])
        tensor([2., 1.])
    """
    result = torch.empty_like(tensors[0], memory_format=torch.contiguous_format)
    row, rows = reals(result), [reals(tensor) for tensor in tensors]
    first, *rest = map(float, coefficients)  # torch takes no whole number above 64 bits
    # Two wide pieces for all, because new memory costs page faults.
    size = min(LARGE, row.numel())
    total, addend = row.new_empty((2, size), dtype=torch.float64).unbind()
    for start in range(0, row.numel(), LARGE):
        parts = [each[start : start + LARGE] for each in (row, *rows)]
        if len(parts[0]) < size:
            size = len(parts[0])
            total, addend = total[:size], addend[:size]
        total.copy_(parts[1])
        if first != 1.0:
            total.mul_(first)
        for part, coefficient in zip(parts[2:], rest, strict=True):
            addend.copy_(part)
            total.add_(addend, alpha=coefficient)
        parts[0].copy_(total if divisor == 1.0 else total.div_(divisor))
    return result


def weighted(parts: list[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the sum of ``weights[i] * parts[i]``; changes the first of ``parts``."""
    total = parts[0].mul_(float(weights[0]))
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        total.add_(part, alpha=float(weight))
    return total


@torch.no_grad()
def inner_products(tensors: Sequence[Tensor], *, origin: Tensor | None = None) -> Tensor:
    """Return the inner product of each of ``tensors`` with each.

    Args:
        tensors: At least one; of one shape.
        origin: Taken from each of them before, if given.

    Returns:
        Shape (len(tensors), len(tensors)), in double precision, on the CPU.

    Example:
        >>> inner_products([torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0])])
        tensor([[25.,  3.],
                [ 3.,  1.]], dtype=torch.float64)
    """
    products = tensors[0].new_zeros((len(tensors), len(tensors)), dtype=torch.float64)
    for _, piece in pieces([*tensors, *([] if origin is None else [origin])]):
        changes = piece if origin is None else piece[:-1].sub_(piece[-1])
        products.addmm_(changes, changes.T)
    return products.cpu()
