"""A second set of weights through the runs of a Trainer: begun, evaluated, saved, put in, taken back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_tricks.core.gradients import groups_of_held
from lightning_tricks.core.norms import relative_distance
from lightning_tricks.core.select import Patterns
from lightning_tricks.core.tensors import copy_
from lightning_tricks.lifecycle.both_sets import write_both
from lightning_tricks.lifecycle.layouts import Layouts, layouts_of, parts_of, wholes_of
from lightning_tricks.lifecycle.no_fit import NoFit
from lightning_tricks.lifecycle.notice import say, warn
from lightning_tricks.lifecycle.sets_of_parts import load_average, take_sets
from lightning_tricks.lifecycle.shadow import Shadows
from lightning_tricks.lifecycle.slots import Slot, find_slots, other_buffers, same_places, stand_in
from lightning_tricks.lifecycle.strategies import any_of, check_parts, flat_shards, reshard
from lightning_tricks.lifecycle.weights_only import WeightsOnlyHook, remove

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from lightning_tricks.lifecycle.conductor import Conductor

__all__ = ["SecondSet"]


class SecondSet:
    """What every technique does that keeps averaged weights; when they move is its own affair.

    Attributes:
        slots: The tensors that are averaged, by first clean name.
        shadows: Their averages; ``None`` until averaging begins, or to forget them.
        values: The average of the checkpoint that ``fit`` has loaded, until it is taken; ``None`` for none.
        aside: Whether neither evaluations see it, nor the module holds it after a run, nor a state dict.
    """

    def __init__(self, *, aside: bool = False, statistics: bool = False) -> None:
        """Know of no run; ``statistics`` is as ``find_slots`` takes it."""
        self.aside, self._statistics = aside, statistics
        self.slots: dict[str, Slot] = {}
        self._conductor: Conductor | None = None
        self._layouts: Layouts = {}
        self._evaluating = False
        self._save = "average"
        self._forget()

    def _forget(self) -> None:
        self.shadows: Shadows | None = None
        self.values: dict[str, Tensor] | None = None
        self._loaded = False
        self._left: LightningModule | None = None
        self._buffers: list[tuple[dict[str, Any], str, str, Tensor]] = []

    @property
    def sharded(self) -> bool:
        """Whether this process holds parts of the weights."""
        return bool(self._layouts)

    def read(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> bool:
        """Put the weights of a loaded checkpoint where they belong; return whether ``fit`` loaded it."""
        layouts = layouts_of(trainer, pl_module)
        if trainer.state.fn != "fit":
            if not self.aside:
                load_average(pl_module, checkpoint, layouts)
            return False
        self._forget()
        self._loaded, self.values = True, take_sets(pl_module, checkpoint, layouts)
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
        edit: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Find the tensors, and edit weights-only checkpoints too from here on, by ``edit`` or :meth:`write`.

        Raises:
            ValueError: If the strategy hides the weights, or ``params`` matches none that can be averaged.
        """
        check_parts(trainer)
        self._layouts = layouts_of(trainer, pl_module)
        slots = find_slots(pl_module, params, buffers=buffers, statistics=self._statistics)
        if self.shadows is not None and same_places(slots, self.slots):
            self.shadows.place()
        elif self.shadows is not None:
            self._forget()
        self.slots, self._save, self._conductor = slots, save, conductor
        if not self.aside:
            conductor.on_next_fit(partial(remove, WeightsOnlyHook(trainer, pl_module, edit or self.write)))

    def begin(
        self,
        trainer: Trainer,
        who: str,
        *,
        dtype: str | torch.dtype | None = None,
        device: str | None = None,
        wide: Mapping[str, Tensor] | None = None,
        known: bool = False,
    ) -> None:
        """Begin with the average of a checkpoint, or else with the live weights.

        Args:
            trainer: The Trainer of the run.
            who: The technique, for messages.
            dtype: The name of the shadows' type; ``None`` for each weight's own, but at least 32 bits.
            device: Where to keep shadows; ``None`` for beside the weights.
            wide: Unrounded values that the checkpoint holds beside.
            known: Whether the average, or that there is none, is what ``who`` has saved itself.
        """
        found, loaded = self.values, self._loaded
        values = None if found is None else {**found, **parts_of(wide or {}, self._layouts)}
        fresh = self.hold(values, dtype=dtype, device=device).fresh
        if loaded and found is None and not known:
            say(trainer, f"{who}: the checkpoint holds no average of it, which begins as the weights are")
        elif found is not None and fresh:
            say(trainer, f"{who}: the checkpoint lacks the average of {', '.join(fresh)}, begun as they are")
        elif found is not None and not known:
            say(trainer, f"{who}: goes on from the average that the checkpoint holds")

    def hold(self, values: Mapping[str, Tensor] | None, *, dtype: Any = None, device: Any = None) -> Shadows:
        """Let the average be ``values``, parts by clean names; what has none there begins as it is."""
        assert self._conductor is not None
        self.reshard()
        self.shadows = Shadows(
            self.slots,
            dtype=None if dtype is None else getattr(torch, str(dtype)),
            device=device,
            values=values,
            agree=partial(any_of, self._conductor.trainer) if self._layouts else list,
        )
        self._loaded, self.values = False, None
        return self.shadows

    def reshard(self) -> None:
        """Let the module hold parts, which an evaluation or a step may have left whole."""
        if self._layouts and self._conductor is not None:
            reshard(self._conductor.trainer)

    def join_opened(self) -> None:
        """Begin shadows of what was frozen and is open now; to be called before it moves."""
        if self.shadows is not None:
            self.reshard()
            self.shadows.join_opened()

    def lerp_(self, share: float | Tensor, *, wait: bool = False) -> None:
        """Move the average towards the live weights by ``share`` of the way, or ``wait`` for make_moves_."""
        assert self.shadows is not None and self._conductor is not None
        self._conductor.moves.note(self.shadows, share)
        if not wait:
            self.make_moves_()

    def make_moves_(self) -> None:
        """Make all moves that wait, of other techniques too."""
        if self._conductor is not None:
            self.reshard()
            self._conductor.moves.make_()

    def switch_(self) -> None:
        """Let the live weights jump to where the average is, right after it has moved."""
        assert self.shadows is not None
        self.shadows.give_()

    def distance(self) -> Tensor:
        """Return how far the average is from the live weights, as a share of their norm.

        A 0-d tensor, the same in all processes; to be called by all together, while the module holds the live
        weights.
        """
        assert self.shadows is not None and self._conductor is not None
        self.reshard()
        spread = flat_shards(self._conductor.trainer) if self._layouts else {}
        # By name: a resumed run has them in another order, in which a sum is rounded otherwise.
        pairs = sorted(self.shadows.averaged(), key=lambda pair: pair[0].names)
        return relative_distance((s, slot.tensor, groups_of_held(slot.held, spread)) for slot, s in pairs)

    def show(self, trainer: Trainer) -> None:
        """Put the average into the module for an evaluation within ``fit``, if it is not there."""
        if trainer.state.fn == "fit" and self.shadows is not None and not self.shadows.shown:
            self._evaluating = True
            self.reshard()
            self.shadows.show()

    def hide(self) -> bool:
        """Take it out again, if it is in for an evaluation; return whether it was."""
        if (within := self._evaluating) and self.shadows is not None:
            self.reshard()
            self.shadows.hide()
        self._evaluating = False
        return within

    def finish(self, trainer: Trainer, who: str) -> None:
        """Put the average into the module until the Trainer fits again."""
        if not self.shadows:
            reason = "start was not reached" if self.shadows is None else "no weight was trained"
            warn(trainer, f"{who} averaged nothing, since {reason}: the module keeps its live weights")
            return
        assert self._conductor is not None
        if self.aside:
            self._conductor.on_next_fit(self._forget)  # nobody can tell which weights that will begin with
            return
        self.reshard()
        self.shadows.show(keep=True)
        # Whoever puts other weights into the module later may give it other statistics with them.
        self._buffers = other_buffers(trainer.lightning_module, self.slots)
        self._conductor.on_next_fit(partial(self._go_on, trainer, trainer.lightning_module))

    def _go_on(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module its live weights back, unless it holds others or another is trained now."""
        assert self.shadows is not None
        if trainer.lightning_module is not pl_module:
            self._forget()  # it keeps what it was left with
            return
        self.reshard()
        untouched = stand_in(self.slots, pl_module) and self.shadows.untouched()
        # Lightning gives all processes the weights of the first, so they may have been put in there alone.
        if trainer.strategy.reduce_boolean_decision(untouched):
            self.shadows.hide()
            self._buffers = []
        else:
            self._forget()
            self._left = pl_module  # a checkpoint may yet take their place

    def tell(self, trainer: Trainer, who: str) -> None:
        """Say that averaging begins anew, if it does; called when no checkpoint is to be loaded any more."""
        if self._left is trainer.lightning_module:
            others = "the module holds other weights than the average"
            say(trainer, f"{who}: {others}, so training goes on from them and averaging begins anew")
        self._left = None

    def rest(self, trainer: Trainer, who: str) -> None:
        """Hold the average after a fit that had nothing to train, and follow the module to its device."""
        self.tell(trainer, who)
        if self.shadows is not None:
            if not (self.shadows.shown or self.aside):
                self.finish(trainer, who)
            self.shadows.place()

    @contextmanager
    def live(self) -> Iterator[None]:
        """Give the module its live weights within the context, and then again what it held.

        A fit within is refused, for the old average would come over what it has trained.
        """
        if self.shadows is None:
            yield
            return
        buffers: list[Tensor] = [owner[key] for owner, key, _, _ in self._buffers]
        held = [buffer.clone() for buffer in buffers]
        rests = self.shadows.shown and not self._evaluating
        self.reshard()
        with NoFit(self._conductor if rests else None), self.shadows.hidden():
            copy_(buffers, [live for *_, live in self._buffers])
            try:
                yield
            finally:
                copy_(buffers, held)
                self.reshard()

    def write(self, checkpoint: dict[str, Any]) -> None:
        """Put both sets into a checkpoint, once averaging has begun; called by all processes."""
        if self.shadows is None or self.aside:
            return
        assert self._conductor is not None
        kept = {name: buffer for _, _, name, buffer in self._buffers}
        write_both(
            self._conductor.trainer,
            checkpoint,
            self.shadows,
            self._layouts,
            buffers=kept,
            live=self.live,
            save=self._save,
        )

    def beyond(self) -> dict[str, Tensor]:
        """Return the averages that a state dict does not hold to the bit, whole; called by all processes.

        Of a set that is kept aside these are all, by all their clean names.
        """
        parts = {} if not self.shadows else self.shadows.named() if self.aside else self.shadows.beyond()
        firsts = {name: parts[name] for name in self.slots if name in parts}
        wholes = wholes_of(firsts, self._layouts) if self._layouts else firsts
        if not self.aside:
            return wholes
        return {alias: wholes[name] for name in wholes for alias in self.slots[name].names}
