"""A second set of weights through the runs of a Trainer: begun, evaluated, saved, put in, taken back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_tricks.averaging.shadow import Shadows, as_device
from lightning_tricks.averaging.slots import Slot, find_slots, same_places
from lightning_tricks.core.select import Patterns, clean_name
from lightning_tricks.core.tensors import copy_
from lightning_tricks.lifecycle.checkpoints import (
    WeightsOnlyHook,
    load_average,
    read_sets,
    take_sets,
    write_sets,
)
from lightning_tricks.lifecycle.notice import say, warn

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from lightning_tricks.lifecycle.conductor import Conductor

__all__ = ["SecondSet"]


class SecondSet:
    """What every technique does that keeps averaged weights; when they move is its own affair.

    Attributes:
        slots: The tensors that are averaged, by first clean name.
        shadows: Their averages; ``None`` until averaging begins.
    """

    def __init__(self) -> None:
        """Know of no run."""
        self.slots: dict[str, Slot] = {}
        self._conductor: Conductor | None = None
        self._evaluating = False
        self._save = "average"
        self._forget()

    def _forget(self) -> None:
        self.shadows: Shadows | None = None
        self._values: dict[str, Tensor] | None = None
        self._loaded = False
        self._buffers: list[tuple[dict[str, Any], str, str, Tensor]] = []

    def read(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> bool:
        """Put the weights of a loaded checkpoint where they belong; return whether ``fit`` loaded it."""
        if trainer.state.fn != "fit":
            load_average(pl_module, checkpoint)
            return False
        self._forget()
        self._loaded, self._values = True, take_sets(pl_module, checkpoint)
        return True

    def prepare(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        conductor: Conductor,
        *,
        params: Patterns,
        buffers: bool,
        save: str,
    ) -> None:
        """Find the tensors, and edit weights-only checkpoints too from here on.

        Raises:
            ValueError: If the weights are sharded, or ``params`` matches none that can be averaged.
        """
        if trainer.strategy.restore_checkpoint_after_setup:
            name = type(trainer.strategy).__name__
            raise ValueError(f"averaged weights must be whole in each process, got {name}")
        slots = find_slots(pl_module, params, buffers=buffers)
        if self.shadows is not None and same_places(slots, self.slots):
            self.shadows.place()
        elif self.shadows is not None:
            self._forget()
        self.slots, self._save, self._conductor = slots, save, conductor
        conductor.on_next_fit(WeightsOnlyHook(trainer, pl_module, self.write).remove)

    @property
    def found(self) -> bool:
        """Whether the checkpoint that ``fit`` has loaded holds an average that is not yet taken."""
        return self._values is not None

    def begin(
        self,
        trainer: Trainer,
        who: str,
        *,
        dtype: str | torch.dtype | None = None,
        device: str | None = None,
        wide: Mapping[str, Tensor] | None = None,
        known: bool = False,
    ) -> Shadows:
        """Begin with the average of a checkpoint, or else with the live weights.

        Args:
            trainer: The Trainer of the run.
            who: The technique, for messages.
            dtype: The name of the shadows' type; ``None`` for each weight's own, but at least 32 bits.
            device: Where to keep shadows; ``None`` for beside the weights.
            wide: Unrounded values that the checkpoint holds beside.
            known: Whether the average, or that there is none, is what ``who`` has saved itself.
        """
        self.shadows = Shadows(
            self.slots,
            dtype=None if dtype is None else getattr(torch, str(dtype)),
            device=as_device("device", device),
            values=None if self._values is None else {**self._values, **(wide or {})},
        )
        if self._loaded and self._values is None and not known:
            say(trainer, f"{who}: the checkpoint holds no average, so it begins with the weights as they are")
        elif self._values is not None and self.shadows.fresh:
            missing = ", ".join(self.shadows.fresh)
            say(trainer, f"{who}: the checkpoint holds no average of {missing}, which begin as they are")
        elif self._values is not None and not known:
            say(trainer, f"{who}: goes on from the average that the checkpoint holds")
        self._loaded, self._values = False, None
        return self.shadows

    def show(self, trainer: Trainer) -> None:
        """Put the average into the module for an evaluation within ``fit``, if it is not there."""
        if trainer.state.fn == "fit" and self.shadows is not None and not self.shadows.shown:
            self._evaluating = True
            self.shadows.show()

    def hide(self) -> None:
        """Take it out again, if it is in for an evaluation."""
        if self._evaluating and self.shadows is not None:
            self.shadows.hide()
        self._evaluating = False

    def finish(self, trainer: Trainer, who: str) -> None:
        """Put the average into the module until the Trainer fits again."""
        if not self.shadows:
            reason = "start was not reached" if self.shadows is None else "no weight was trained"
            warn(trainer, f"{who} averaged nothing, since {reason}: the module keeps its live weights")
            return
        assert self._conductor is not None
        self.shadows.show(keep=True)
        # Whoever puts other weights into the module later may give it other statistics with them.
        self._buffers = [
            (child._buffers, key, clean_name(f"{path}.{key}"), buffer.to("cpu", copy=True))
            for path, child in trainer.lightning_module.named_modules()
            for key, buffer in child._buffers.items()
            if buffer is not None and clean_name(f"{path}.{key}") not in self.slots
        ]
        self._conductor.on_next_fit(self._go_on)

    def _go_on(self) -> None:
        if self.shadows is not None:
            self.shadows.hide()
        self._buffers = []

    def rest(self, trainer: Trainer, who: str) -> None:
        """Hold the average after a fit that had nothing to train, and follow the module to its device."""
        if self.shadows is not None:
            if not self.shadows.shown:
                self.finish(trainer, who)
            self.shadows.place()

    @contextmanager
    def live(self) -> Iterator[None]:
        """Give the module its live weights within the context, and then again what it held."""
        if self.shadows is None:
            yield
            return
        buffers: list[Tensor] = [owner[key] for owner, key, _, _ in self._buffers]
        held = [buffer.clone() for buffer in buffers]
        with self.shadows.hidden():
            copy_(buffers, [live for *_, live in self._buffers])
            try:
                yield
            finally:
                copy_(buffers, held)

    def write(self, checkpoint: dict[str, Any]) -> None:
        """Put both sets into a checkpoint, once averaging has begun."""
        if self.shadows is not None:
            live, average = self.shadows.sets(*read_sets(checkpoint))
            kept = {name: buffer for _, _, name, buffer in self._buffers}
            live = {key: kept.get(clean_name(key), value) for key, value in live.items()} if kept else live
            write_sets(checkpoint, live=live, average=average, save=self._save)
