"""The entries of a batch, by place in a tuple or list, or by key in a dictionary."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["check_place", "replaced_entries", "taken_entry"]


def check_place(name: str, value: object) -> None:
    """Accept what may say where a batch holds something.

    Raises:
        TypeError: If ``value`` is neither a place nor a key.
    """
    if type(value) not in (int, str):
        raise TypeError(f"{name} must be a place or a key in a batch, got {value!r}")


def taken_entry(batch: Any, at: int | str, *, name: str) -> Tensor:
    """Return the tensor that ``batch`` holds at ``at``.

    Args:
        batch: A tuple, list or dictionary.
        at: The place or key.
        name: What the user calls that setting, for errors.

    Raises:
        ValueError: If there is no tensor.
    """
    try:
        value = batch[at]
    except (LookupError, TypeError):
        value = None
    if isinstance(batch, Tensor) or not isinstance(value, Tensor):
        held = sorted(map(str, batch)) if isinstance(batch, dict) else type(batch).__name__
        raise ValueError(f"{name} must be where a batch holds a tensor, got {at!r} for a batch of {held}")
    return value


def replaced_entries(batch: Any, values: dict[int | str, Tensor]) -> Any:
    """Return a batch like ``batch``, which stays as it is, with other ``values`` at some places or keys.

    Example:
        >>> replaced_entries(("x", "y", "z"), {1: "other"})
        ('x', 'other', 'z')
    """
    if isinstance(batch, dict):
        return {**batch, **values}
    entries = list(batch)
    for at, value in values.items():
        entries[int(at)] = value
    if hasattr(batch, "_make"):
        return batch._make(entries)
    return entries if isinstance(batch, list) else tuple(entries)
