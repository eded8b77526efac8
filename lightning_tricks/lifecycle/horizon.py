"""How long a run is, in optimizer steps, read from its Trainer.

Lightning's own ``estimated_stepping_batches`` ignores the accumulation scheduler, gives -1 for a loader
without length, and, called before a resumed run has restored its loops, makes a loader that can be
fast-forwarded start again from its beginning. So this is read at the start of training, when the loader
is there.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from lightning_tricks.core.duration import Horizon
from lightning_tricks.lifecycle.clock import Clock
from lightning_tricks.lifecycle.notice import callbacks_of

__all__ = ["run_horizon"]


def run_horizon(trainer: Trainer, clock: Clock) -> Horizon:
    """Return the length of the run that ``trainer`` is about to start, or to go on with from ``clock``.

    Where epochs were of other lengths when the checkpoint was written, what is done stays done, and what is
    left has the lengths of now.

    In automatic optimization this is exact. In manual optimization every training batch counts as one
    step, because only the module knows when it steps.
    """
    batches = trainer.num_training_batches
    if math.isinf(batches):
        total = trainer.max_steps if trainer.max_steps >= 0 else None
        return _known(trainer, total, None, "the training loader has no length")
    lengths = _epoch_lengths(trainer, int(batches))
    ends = tuple(accumulate(lengths))
    if clock.former_ends not in (None, ends):
        ends = _going_on(trainer, clock, ends, int(batches))
    limits = [trainer.max_steps] if trainer.max_steps >= 0 else []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        limits.append(int(Horizon(None, ends).step_at(trainer.max_epochs)))
    return _known(trainer, min(limits, default=None), ends, "the run has neither max_epochs nor max_steps")


def _going_on(trainer: Trainer, clock: Clock, ends: tuple[int, ...], batches: int) -> tuple[int, ...]:
    """Return the ends of epochs, those done by ``clock.former_ends`` and those to come by ``ends``."""
    now, before, done = Horizon(None, ends), Horizon(None, clock.former_ends), trainer.current_epoch
    found = [int(before.step_at(epoch)) for epoch in range(1, done + 1)]
    epoch: Any = trainer.fit_loop.epoch_progress.current
    left = batches
    if epoch.ready > epoch.processed:  # within an epoch
        left = max(0, batches - trainer.fit_loop.epoch_loop.batch_progress.current.ready)
    step = clock.position
    for index in range(done, max(done + 2, len(ends))):
        length = now.step_at(index + 1) - now.step_at(index)
        step += math.ceil(length * left / batches)
        left = batches
        found.append(step)
    return tuple(found)


def _known(trainer: Trainer, total: int | None, ends: tuple[int, ...] | None, unknown: str) -> Horizon:
    if trainer.max_steps >= 0 and len(trainer.optimizers) > 1:
        # max_steps counts the steps of all optimizers together, and only the module knows how many of
        # them a batch makes.
        return Horizon(None, ends, "max_steps counts the steps of several optimizers")
    return Horizon(total, ends, unknown)


def _epoch_lengths(trainer: Trainer, batches: int) -> list[int]:
    """Return the steps of each epoch, up to the one from which on all are equally long."""
    if not trainer.lightning_module.automatic_optimization:
        return [batches]
    for callback in callbacks_of(trainer):
        if isinstance(callback, GradientAccumulationScheduler):
            epochs = range(max(callback.scheduling) + 1)
            return [math.ceil(batches / callback.get_accumulate_grad_batches(e)) for e in epochs]
    return [math.ceil(batches / trainer.accumulate_grad_batches)]
