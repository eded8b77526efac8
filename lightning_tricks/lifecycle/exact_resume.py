"""Exact resume: a run that is broken off and resumed equals the uninterrupted one, to the bit.

Lightning saves weights, optimizers and counters, but no random states, no running means of metrics, and of
each process's data loaders those of the first process only.

References: PyTorch, "Reproducibility", https://docs.pytorch.org/docs/stable/notes/randomness.html, on what a
run draws from; PyTorch, "torchdata.stateful_dataloader",
https://docs.pytorch.org/data/main/torchdata.stateful_dataloader.html, on loaders that can be resumed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

import torch.distributed as dist

from lightning_tricks.lifecycle.continuation import Continuation, count_as_done
from lightning_tricks.lifecycle.notice import say, warn
from lightning_tricks.lifecycle.position import (
    ReadAhead,
    moment_of,
    obstacles,
    position,
    reads_ahead,
    stateless,
    train_loaders,
    writes_within_epochs,
)
from lightning_tricks.lifecycle.randomness import lost_devices
from lightning_tricks.lifecycle.technique import Technique

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lightning.pytorch import LightningModule, Trainer

    from lightning_tricks.core.conflicts import Claim

__all__ = ["ExactResume"]


def of_all_processes(trainer: Trainer, value: Any) -> list[Any]:
    """Return ``value`` of each process, by rank; to be called by all of them."""
    if trainer.world_size == 1 or not dist.is_initialized():
        return [value]
    values = [None] * trainer.world_size
    dist.all_gather_object(values, value)
    return values


def _workers_begin_anew(loader: Any, place: dict[str, Any]) -> bool:
    within = place["data"] is not None
    return getattr(loader, "num_workers", 0) > 0 and (within or loader.persistent_workers)


@final
@dataclass(eq=False, repr=False, kw_only=True)
class ExactResume(Technique):
    """Make a resumed run equal the uninterrupted one, to the bit, and log the same.

    It saves what Lightning does not: random states of every process, and the means of an epoch that was
    broken off.

    * **When** a full checkpoint is written, and when a run is resumed from it: after all ``on_train_start``
      hooks it goes on from where the checkpoint was written, be it the end of a batch, of a validation or of
      an epoch. What Lightning leaves out there is made up: a validation that was due, what is logged, the
      step of a scheduler that watches a metric.
    * **Changes** nothing in a run that is not resumed.
    * **Logs** nothing.
    * **Saves** for each process the random states of Python, NumPy, torch and CUDA and of the generators that
      loaders were given, the places of its train loaders, the running means of logged values and the states
      of ``torchmetrics.Metric`` children.
    * **Cost** 15 kB of each checkpoint per process, and the metrics' states. With a train loader that has a
      ``state_dict`` but no length, that ``state_dict`` and the random states once per batch.
    * **Use** in every run that may be broken off. Within an epoch only loaders with a ``state_dict`` go on,
      such as torchdata's ``StatefulDataLoader``; between epochs, all begin anew. **not** where workers of the
      loader draw random numbers: theirs start anew within an epoch, and with ``persistent_workers`` always.

    Equal are the two as far as two uninterrupted runs are. Where a resumed run cannot equal the other, it
    warns and says why: a checkpoint from within a step or an accumulation, a hook of the module that comes
    after the checkpoint's, another number of processes or CUDA devices.

    Example:
        >>> ExactResume()
        ExactResume()
    """

    _restored: dict[str, Any] | None = field(default=None, init=False, repr=False)
    _unknown: bool = field(default=False, init=False, repr=False)
    _continuation: Continuation | None = field(default=None, init=False, repr=False)
    _read_ahead: ReadAhead | None = field(default=None, init=False, repr=False)

    def claims(self) -> Iterable[Claim]:
        return []

    def read_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != "fit":
            return
        entry = checkpoint["callbacks"].get(self.state_key)
        self._unknown = entry is None
        if entry is not None and len(entry["state"]["processes"]) == trainer.world_size:
            count_as_done(checkpoint["loops"]["fit_loop"], entry["state"]["moment"])

    def restore(self, state: dict[str, Any]) -> None:
        self._restored = state

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if reads_ahead(trainer):
            self._read_ahead = ReadAhead(trainer)
        without = stateless(trainer)
        if not self._go_on(trainer) and without and writes_within_epochs(trainer):
            warn(
                trainer,
                f"{self.state_key}: the train loader ({without}) has no state_dict, so a run that is resumed "
                "within an epoch begins the data of the epoch again: use torchdata's StatefulDataLoader, or "
                "write checkpoints at the ends of epochs only",
            )

    def _go_on(self, trainer: Trainer) -> bool:
        """Go on where the checkpoint was written, if there is one; return whether that cannot be exact."""
        state, self._restored = self._restored, None
        if self._unknown:
            say(trainer, f"{self.state_key}: the checkpoint was written without it, so random states are new")
        self._unknown = False
        if state is None:
            return False
        places = state["processes"]
        if len(places) != trainer.world_size:
            warn(
                trainer,
                f"{self.state_key}: the checkpoint was written by {len(places)} processes, not "
                f"{trainer.world_size}, so random states and running metrics start anew on all of them",
            )
            return False
        place = places[trainer.global_rank]
        found = [*state["obstacles"], *lost_devices(place["random"])]
        if found:
            told = f"{self.state_key}: the resumed run cannot equal the uninterrupted one: "
            warn(trainer, told + "; ".join(found))
        if any(_workers_begin_anew(loader, place) for loader in train_loaders(trainer)):
            say(trainer, f"{self.state_key}: what workers of the loader draw at random starts anew")
        self._continuation = Continuation(trainer, state["moment"], place, self._read_ahead)
        return bool(found)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._continuation is not None:
            self._continuation.end_epoch()

    def edit_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        place = position(trainer, pl_module, self._read_ahead)
        checkpoint["callbacks"][self.state_key]["state"] = {
            "moment": moment_of(trainer),
            "obstacles": obstacles(trainer, pl_module),
            "processes": of_all_processes(trainer, place),
        }

    def undo(self) -> None:
        for patch in (self._continuation, self._read_ahead):
            if patch is not None:
                patch.remove()
        self._continuation = self._read_ahead = None
