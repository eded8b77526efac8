"""What techniques make of the batches that training gets: several edits, in one order, on one hook.

They are made as a batch has come to its device, behind what the module or the datamodule does there itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from inspect import signature
from typing import Any, NamedTuple

from lightning.pytorch import Trainer

from lightning_tricks.lifecycle.evaluation import replaced

__all__ = ["BATCH_ORDER", "edit_batches", "looking"]

BATCH_ORDER = ("size", "mixing")
"""The order in which edits are right: areas that are mixed are whole pixels of what training sees."""

_HOOK = "on_after_batch_transfer"
_MARK = "lightning_tricks_edits"


class _Edit(NamedTuple):
    place: int
    make: Callable[[Any], Any]
    looked_at: bool


class _Edits:
    """What is done after the hook of ``holder``, in whose place it puts one that does."""

    def __init__(self, trainer: Trainer, holder: Any) -> None:
        self._attributes = attributes = vars(holder)
        self._own = attributes.get(_HOOK)
        self._edits: list[_Edit] = []
        self.wants: Callable[[_Edit], bool] = lambda _: True
        before: Callable[..., Any] = getattr(holder, _HOOK)

        # A function: whoever copies the module within the run copies no Trainer with it.
        @wraps(before)
        def edited(batch: Any, dataloader_idx: int) -> Any:
            batch = before(batch, dataloader_idx)
            for edit in self._edits:
                if trainer.training and self.wants(edit):
                    batch = edit.make(batch)
            return batch

        vars(edited)[_MARK] = self
        attributes[_HOOK] = edited

    @staticmethod
    def of(holder: Any) -> _Edits | None:
        """Return those that are made already."""
        return getattr(vars(holder).get(_HOOK), _MARK, None)

    def add(self, edit: _Edit) -> Callable[[], None]:
        """Make ``edit``, too, after those at lower places; return what ends that."""
        self._edits = sorted([*self._edits, edit], key=lambda known: known.place)

        def end() -> None:
            self._edits.remove(edit)
            if not self._edits:
                del self._attributes[_HOOK]
                if self._own is not None:
                    self._attributes[_HOOK] = self._own

        return end


def edit_batches(
    trainer: Trainer, stage: str, edit: Callable[[Any], Any], *, looked_at: bool = True
) -> Callable[[], None]:
    """Let training get what ``edit`` makes of each batch, and evaluations none of it.

    Args:
        trainer: The Trainer of the run, which is in ``fit``.
        stage: Its place in :data:`BATCH_ORDER`, whatever the order of calls.
        edit: Takes a batch and returns one; it must not change that which it takes.
        looked_at: Whether batches are edited, too, that a technique fetches within training to look at.

    Returns:
        What ends that; the last to end puts the hook back as it was.

    Raises:
        ValueError: If training gets no batches, but takes them itself.
    """
    if "dataloader_iter" in signature(trainer.lightning_module.training_step).parameters:
        raise ValueError("training_step must get batches so that they can be changed, got a dataloader_iter")
    holder = _holder(trainer)
    edits = _Edits.of(holder) or _Edits(trainer, holder)
    return edits.add(_Edit(BATCH_ORDER.index(stage), edit, looked_at))


@contextmanager
def looking(trainer: Trainer, *, edited: bool) -> Iterator[None]:
    """Let batches that move to the device within this be known as ones that are only looked at.

    Args:
        trainer: The Trainer of the run, which is in ``fit``.
        edited: Whether those edits are made that are for such batches, too.
    """
    edits = _Edits.of(_holder(trainer))
    wants = {"wants": lambda edit: edited and edit.looked_at}
    with nullcontext() if edits is None else replaced(edits, wants):
        yield


def _holder(trainer: Trainer) -> Any:
    """Return the module or the datamodule, whichever's hook Lightning calls."""
    selector = trainer._data_connector._datahook_selector
    assert selector is not None
    return selector.get_instance(_HOOK)
