"""What techniques make of the batches that training gets: several edits in one order, on the one hook there is.

They are made as a batch has come to its device, behind what the module or the datamodule does there itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from inspect import signature
from typing import Any

from lightning.pytorch import Trainer

__all__ = ["BATCH_ORDER", "edit_batches"]

BATCH_ORDER = ("size", "mixing")
"""The order in which edits are right: areas that are mixed are whole pixels of what training sees."""

_HOOK = "on_after_batch_transfer"

Edit = Callable[[Any], Any]


class _EditedHook:
    """Stands for the hook of ``holder``, and knows what is done after it."""

    def __init__(self, trainer: Trainer, holder: Any) -> None:
        self._trainer, self._attributes = trainer, vars(holder)
        self._own = self._attributes.get(_HOOK)
        self._before: Callable[..., Any] = getattr(holder, _HOOK)
        self._edits: list[tuple[int, Edit]] = []
        update_wrapper(self, self._before)  # by which Lightning finds that the hook is there
        self._attributes[_HOOK] = self

    def __call__(self, batch: Any, dataloader_idx: int) -> Any:
        moved = self._before(batch, dataloader_idx)
        for _, edit in self._edits if self._trainer.training else ():
            moved = edit(moved)
        return moved

    def add(self, place: int, edit: Edit) -> Callable[[], None]:
        """Make ``edit``, too, after those at lower places; return what ends that."""
        entry = place, edit
        self._edits = sorted([*self._edits, entry], key=lambda known: known[0])

        def end() -> None:
            self._edits.remove(entry)
            if not self._edits:
                del self._attributes[_HOOK]
                if self._own is not None:
                    self._attributes[_HOOK] = self._own

        return end


def edit_batches(trainer: Trainer, stage: str, edit: Edit) -> Callable[[], None]:
    """Let training get what ``edit`` makes of each batch, and evaluations none of it.

    Args:
        trainer: The Trainer of the run, which is in ``fit``.
        stage: Its place in :data:`BATCH_ORDER`, whatever the order of calls.
        edit: Takes a batch and returns one, which it must not change in place.

    Returns:
        What ends that; the last to end puts the hook back as it was.

    Raises:
        ValueError: If training gets no batches, but takes them itself.
    """
    if "dataloader_iter" in signature(trainer.lightning_module.training_step).parameters:
        raise ValueError("training_step must get batches so that they can be changed, got a dataloader_iter")
    selector = trainer._data_connector._datahook_selector
    assert selector is not None
    holder = selector.get_instance(_HOOK)
    hook = vars(holder).get(_HOOK)
    if not isinstance(hook, _EditedHook):
        hook = _EditedHook(trainer, holder)
    return hook.add(BATCH_ORDER.index(stage), edit)
