"""In which type and on which device averages are kept."""

from __future__ import annotations

import torch

__all__ = ["as_device", "as_dtype", "require_device", "shadow_dtype"]


def shadow_dtype(dtype: torch.dtype, asked: torch.dtype | None) -> torch.dtype:
    """Return the type of a shadow of a tensor of ``dtype``.

    Args:
        dtype: A floating or complex type.
        asked: The real type to use; ``None`` for ``dtype``, but at least 32 bits.

    Example:
        >>> shadow_dtype(torch.bfloat16, None), shadow_dtype(torch.complex64, torch.float64)
        (torch.float32, torch.complex128)
    """
    if asked is None:
        return torch.promote_types(dtype, torch.float32)
    return asked.to_complex() if dtype.is_complex else asked


def as_device(name: str, value: str | torch.device | None) -> str | None:
    """Return the name of the device that ``value`` stands for; ``None`` stays.

    Args:
        name: What the user calls the value.
        value: Such as ``"cpu"`` or ``"cuda:1"``.

    Raises:
        ValueError: If torch knows no such device.
    """
    try:
        return None if value is None else str(torch.device(value))
    except (RuntimeError, TypeError, ValueError):
        raise ValueError(f"{name} must name a device of torch, such as 'cpu', got {value!r}") from None


def require_device(name: str, value: str | None) -> None:
    """Check that tensors can be kept on the device that ``value`` names.

    Raises:
        ValueError: If torch cannot use it here.
    """
    try:
        _ = None if value is None else torch.zeros(1, device=value).item()  # "meta" takes, but never gives
    except (AssertionError, ImportError, RuntimeError) as error:
        raise ValueError(f"{name} must be one that torch can use on this machine, got {value!r}") from error


def as_dtype(name: str, value: str | torch.dtype | None) -> str | None:
    """Return the name of the type that ``value`` stands for; ``None`` stays.

    Raises:
        ValueError: If it is no type for averages.
    """
    found = None if value is None else str(value).removeprefix("torch.")
    if found not in (None, "float32", "float64"):
        allowed = "'float32', 'float64' or None (in 16 bits an average stands still)"
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    return found
