"""Both sets of weights of a run, the live ones and their average, as one checkpoint holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from lightning_tricks.core.select import clean_name
from lightning_tricks.lifecycle.checkpoints import read_sets, write_sets
from lightning_tricks.lifecycle.layouts import Layouts, module_parts
from lightning_tricks.lifecycle.sets_of_parts import write_parts
from lightning_tricks.lifecycle.shadow import Shadows
from lightning_tricks.lifecycle.strategies import reshard

__all__ = ["write_both"]


def write_both(
    trainer: Trainer,
    checkpoint: dict[str, Any],
    shadows: Shadows,
    layouts: Layouts,
    *,
    buffers: Mapping[str, Tensor],
    live: Callable[[], AbstractContextManager[None]],
    save: str,
) -> None:
    """Put both sets into a checkpoint that holds the one in the module; called by all processes.

    Args:
        trainer: The Trainer of the run.
        checkpoint: As the strategy has filled it.
        shadows: The averages.
        layouts: Of the weights that are not whole in each process.
        buffers: Those of the live weights, by clean names, where the module may hold others.
        live: Gives the module its live weights within a context.
        save: Which set stands under ``state_dict``.
    """

    def with_buffers(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: buffers.get(clean_name(key), value) for key, value in state.items()}

    if not layouts:
        weights, average = shadows.sets(*read_sets(checkpoint))
        weights = with_buffers(weights) if buffers else weights
        write_sets(checkpoint, live=weights, average=average, save=save)
        return
    reshard(trainer)
    parts = module_parts(trainer.lightning_module)
    weights, average = shadows.sets(parts, parts)
    first = save == "average"
    write_parts(
        trainer,
        checkpoint,
        with_buffers(weights) if first else average,
        layouts,
        exchanged=None if shadows.shown == first else _exchanged(trainer, shadows, live),
        save=save,
    )


@contextmanager
def _exchanged(
    trainer: Trainer, shadows: Shadows, live: Callable[[], AbstractContextManager[None]]
) -> Iterator[None]:
    """Let the module hold the other set within the context."""
    if shadows.shown:
        with live():
            yield
        return
    shadows.show()
    try:
        yield
    finally:
        reshard(trainer)
        shadows.hide()
