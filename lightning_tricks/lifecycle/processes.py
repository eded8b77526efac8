"""What only the first process may do, for all of them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

__all__ = ["in_first"]

T = TypeVar("T")


def in_first(trainer: Trainer, work: Callable[[], T]) -> T:
    """Return what ``work`` returns in the first process, the only one in which it is called.

    To be called by all processes together; none goes on before the work is done. An error of the first is
    raised in all, or the others would wait for it forever.

    Args:
        trainer: The Trainer of the run.
        work: Such as writing a file; what it returns must pickle.
    """
    result: T | None = None
    error: Exception | None = None
    if trainer.is_global_zero:
        try:
            result = work()
        except Exception as caught:
            error = _sendable(caught)
    # Where there is an error there is no result, which the types do not say.
    answer: tuple[T, Exception | None] = trainer.strategy.broadcast((result, error))  # type: ignore[assignment]
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def _sendable(error: Exception) -> Exception:
    """Return ``error``, or what it says if it cannot be sent to other processes."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # of any kind, from classes that know nothing of this
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
