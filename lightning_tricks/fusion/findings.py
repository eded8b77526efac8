"""What a method finds out while it fuses, such as which models it takes, beside the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

__all__ = ["listening", "tell"]

_HEARD: ContextVar[dict[str, Any] | None] = ContextVar("heard", default=None)


@contextmanager
def listening(found: dict[str, Any]) -> Iterator[None]:
    """Write into ``found`` what a method tells that fuses within the block.

    Example:
        >>> found = {}
        >>> with listening(found):
        ...     tell(members=[0, 2])
        >>> found
        {'members': [0, 2]}
    """
    token = _HEARD.set(found)
    try:
        yield
    finally:
        _HEARD.reset(token)


def tell(**found: Any) -> None:
    """Tell whoever listens; plain values.

    By convention ``members`` are indices of the models that were taken, ``coefficients`` one number for each
    model, ``scores`` likewise, and ``score`` that of the result; higher is better.
    """
    if (heard := _HEARD.get()) is not None:
        heard.update(found)
