"""Whether an error is one that a user can act on, and whether it came in time."""

from __future__ import annotations

import traceback
from typing import Any

from lightning.pytorch import Callback, Trainer

import lightning_tricks

__all__ = ["Batches", "refusal"]


class Batches(Callback):
    """Counts the training batches that have begun."""

    def __init__(self) -> None:
        self.count = 0

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.count += 1


def refusal(error: BaseException, *words: str) -> str | None:
    """Return why ``error`` is no clear refusal; ``None`` if it is one.

    It must be raised by the package itself, be a ValueError or TypeError, and its message hold ``words``.
    """
    frame = error.__traceback__
    assert frame is not None
    while frame.tb_next is not None:
        frame = frame.tb_next
    last = frame.tb_frame.f_code.co_filename
    if not isinstance(error, ValueError | TypeError | OSError):
        why = "neither ValueError nor TypeError"
    elif not last.startswith(lightning_tricks.__path__[0]):
        why = f"raised elsewhere, {last}"
    elif missing := [word for word in words if word not in str(error)]:
        why = f"lacks {missing}"
    else:
        return None
    return f"{why}:\n{''.join(traceback.format_exception(error))}"
