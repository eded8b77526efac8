"""Tensors of one name as numbers: whether they differ, and whether they and what comes of them are finite."""

from __future__ import annotations

import cmath
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["check_numbers", "check_result", "check_variance", "label_of", "mixes"]


def mixes(tensors: list[Tensor]) -> bool:
    """Return whether tensors of one name, one of each model, are to be combined: numbers that differ."""
    last = tensors[-1]
    if not (last.is_floating_point() or last.is_complex()):
        return False
    if last.dtype.itemsize == 1:
        tensors = [_at_least_float32(tensor) for tensor in tensors]
    return not all(torch.equal(tensor, tensors[-1]) for tensor in tensors)


def check_numbers(name: str, tensors: list[Tensor], labels: Sequence[str] = ()) -> None:
    """Accept only finite tensors of one name, one of each model; ``labels`` are what to call the models.

    Raises:
        ValueError: Names the tensor and the model.
    """
    for index, tensor in enumerate(tensors):
        if not _is_finite(tensor):
            label = label_of(labels, index)
            raise ValueError(f"{name} must be finite in every model, but is not in {label}")


def check_result(name: str, fused: Tensor, method: object) -> None:
    """Accept what ``method`` made of finite tensors if it is finite: no entry is too large for its type.

    Raises:
        ValueError: Names the tensor, the largest number that its type holds, and the method.
    """
    if not _is_finite(fused):
        raise ValueError(
            f"{name} must stay within {fused.dtype}, up to {torch.finfo(fused.dtype).max:g}, but does not by "
            f"{method!r:.200}: take other settings, or models of a wider type"
        )


def check_variance(name: str, fused: Tensor, tensors: Sequence[Tensor], method: object) -> None:
    """Accept a variance of BatchNorm that is not below 0, where that of no model is.

    Raises:
        ValueError: Names the tensor, its smallest entry, and what to do.
    """
    if not name.endswith("running_var") or not fused.numel() or (least := fused.min().item()) >= 0:
        return
    if all(tensor.min() >= 0 for tensor in tensors):
        raise ValueError(
            f"{name} must not fall below 0, being a variance, but reaches {least:.3g} by {method!r:.200}: "
            "fuse by Layerwise({'*running_var': Average(), '*': ...}), the method layerwise of a recipe"
        )


def _is_finite(tensor: Tensor) -> bool:
    wide = _at_least_float32(tensor)
    # The sum of all takes one pass; it is not finite either where finite numbers add up to too much.
    return cmath.isfinite(wide.sum().item()) or bool(wide.isfinite().all())


def _at_least_float32(tensor: Tensor) -> Tensor:
    # Types of 8 bits have no arithmetic, and are promoted to nothing.
    narrow = tensor.dtype.itemsize == 1
    return tensor.to(torch.float32 if narrow else torch.promote_types(tensor.dtype, torch.float32))


def label_of(labels: Sequence[str], index: int) -> str:
    """Return what to call a model: by ``labels``, if there are any."""
    return labels[index] if labels else f"model {index}"
