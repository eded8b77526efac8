"""What every technique does that keeps averaged weights beside the live ones: shown, saved and kept."""

# Without postponed annotations, whose names LightningCLI would look up where the subclasses are defined.

from abc import abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lightning_tricks.core import checks
from lightning_tricks.core.conflicts import Claim
from lightning_tricks.core.select import Patterns, as_patterns
from lightning_tricks.lifecycle.checkpoints import averaged_steps
from lightning_tricks.lifecycle.second_set import SecondSet
from lightning_tricks.lifecycle.side_by_side import check_role, check_side_by_side, log_again
from lightning_tricks.lifecycle.storage import as_device, as_dtype, require_device
from lightning_tricks.lifecycle.technique import Technique

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch.optim import Optimizer

__all__ = ["AveragedWeights"]


@dataclass(eq=False, repr=False, kw_only=True)
class AveragedWeights(Technique):
    """Base of the techniques that evaluate a second set of weights; not to be used itself.

    When the average begins and moves is the affair of each. What the settings here mean stands on the card of
    ``EMAWeights``.
    """

    params: Patterns = "*"
    buffers: Literal["copy", "average"] = "copy"
    device: str | None = None
    dtype: str | torch.dtype | None = None
    evaluate: bool = True
    validate: bool = False
    save: Literal["average", "live"] = "average"
    _second: SecondSet = field(default_factory=SecondSet, init=False, repr=False)
    _state: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        as_patterns("params", self.params)
        checks.one_of("buffers", self.buffers, ("copy", "average"))
        self.device = as_device("device", self.device)
        self.dtype = as_dtype("dtype", self.dtype)
        check_role(evaluate=self.evaluate, validate=self.validate, save=self.save)
        self._second = SecondSet(aside=not self.evaluate)

    # What each defines.

    @abstractmethod
    def counts(self) -> dict[str, Any]:
        """Return how far the average has come: plain values, and tensors."""

    @abstractmethod
    def foreign_counts(self, moves: int) -> dict[str, Any]:
        """Return the counts of an average that another has moved so many times; 0 if that is unknown."""

    def begin_average(self, trainer: "Trainer") -> dict[str, Any]:
        """Begin with the average of a checkpoint, or else with the live weights.

        Returns:
            The counts that the checkpoint holds of it, of which some may be missing; empty for live weights.
        """
        state, self._state = self._state, {}
        goes_on = self._second.values is not None
        own = "wide" in state and (goes_on or not state["begun"])
        self._second.begin(
            trainer, self.state_key, dtype=self.dtype, device=self.device, wide=state.get("wide"), known=own
        )
        return state.get("progress", {}) if goes_on else {}

    def adjust(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Fit what is not averaged to the average, which the module holds for a validation."""

    # What all do.

    def read_checkpoint(
        self, trainer: "Trainer", pl_module: "LightningModule", checkpoint: dict[str, Any]
    ) -> None:
        if self._second.read(trainer, pl_module, checkpoint):
            # Overwritten by the technique's own state, if the checkpoint holds it.
            self._state = {"progress": self.foreign_counts(averaged_steps(checkpoint))}
            if not self.evaluate and self.state_key not in checkpoint["callbacks"]:
                self._second.values, self._state = None, {}  # they are another's

    def prepare(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        require_device("device", self.device)
        if self.validate:
            check_side_by_side(trainer, self, self.state_key)
        buffers = self.buffers == "average"
        self._second.prepare(
            trainer, pl_module, self.conductor, params=self.params, buffers=buffers, save=self.save
        )

    def claims(self) -> Iterable[Claim]:
        if not self.evaluate:
            return []
        remedy = f"keep {self.state_key} apart, by evaluate=False and a label, or remove it"
        ids = frozenset(map(id, self._held().values()))
        return [Claim("eval_weights", self.state_key, ids, remedy)]

    def touched(self) -> Iterable[Tensor]:
        return self._held().values()

    def _held(self) -> dict[str, Tensor]:
        return {name: slot.held for name, slot in self._second.slots.items() if not slot.estimated}

    def restore(self, state: dict[str, Any]) -> None:
        self._state = state
        if state.get("aside"):
            self._second.values = {} if state["wide"] else None
        elif not self.evaluate and self._second.sharded:
            raise ValueError("evaluate must stay True over shards in a run that goes on so, got False")

    def before_step(self, trainer: "Trainer", pl_module: "LightningModule", optimizer: "Optimizer") -> None:
        self._second.join_opened()

    def on_validation_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        if self.evaluate:
            self._second.show(trainer)

    def on_validation_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        self._second.hide()
        if self.validate and self._second.shadows is not None and not trainer.sanity_checking:
            self._second.show(trainer)
            self.adjust(trainer, pl_module)
            log_again(trainer, pl_module, self.metric_prefix)
            self._second.hide()  # after an error, ``undo`` does it

    def undo(self) -> None:
        self._second.make_moves_()  # an interrupt may have come between two that move together
        self._second.hide()

    def finish(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        self._second.finish(trainer, self.state_key)

    def on_fit_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        if self._second.values is not None:  # the run was over before it began, and no hook of training came
            self.take_state(trainer)
            if self._second.values is not None:
                self.begin_average(trainer)
        self._second.rest(trainer, self.state_key)

    @property
    def evaluates_average(self) -> bool:
        return self.evaluate

    def average(self) -> dict[str, Tensor] | None:
        return None if self._second.shadows is None else self._second.shadows.named()

    def live_weights(self) -> AbstractContextManager[None]:
        """Return a context within which the module holds its live weights, where it holds the average.

        It is for evaluations: a fit within is refused by a RuntimeError.

        Raises:
            RuntimeError: If no Trainer has ever used this technique.
        """
        _ = self.conductor  # raises if there is none
        return self._second.live()

    def edit_checkpoint(
        self, trainer: "Trainer", pl_module: "LightningModule", checkpoint: dict[str, Any]
    ) -> None:
        self._second.write(checkpoint)

    def saved(self) -> dict[str, Any]:
        return {
            "progress": self.counts(),
            "wide": self._second.beyond(),
            "aside": not self.evaluate,
            "begun": self._second.shadows is not None,
        }
