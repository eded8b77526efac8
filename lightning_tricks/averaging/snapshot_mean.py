"""What every technique does that averages snapshots, with BatchNorm statistics that are the mean's own."""

# Without postponed annotations, whose names LightningCLI would look up where the subclasses are defined.

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lightning_tricks.averaging.averaged import AveragedWeights
from lightning_tricks.core import checks
from lightning_tricks.core.conflicts import Claim
from lightning_tricks.core.duration import Duration, as_unit
from lightning_tricks.lifecycle.batchnorm import reestimate_batchnorm, reestimate_for_validation
from lightning_tricks.lifecycle.notice import warn
from lightning_tricks.lifecycle.second_set import SecondSet

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

__all__ = ["SnapshotMean"]


@dataclass(eq=False, repr=False, kw_only=True)
class SnapshotMean(AveragedWeights):
    """Base of the techniques that average snapshots; not to be used itself.

    What the settings mean stands on the card of ``SWAWeights``.
    """

    every: int | str = "1 epoch"
    update_batchnorm: bool = True
    batches: int = 200
    _passed: int = field(default=0, init=False, repr=False)
    _snapshots: int = field(default=0, init=False, repr=False)
    _estimated: int = field(default=-1, init=False, repr=False)

    def __post_init__(self) -> None:
        as_unit("every", self.every)
        checks.flag("update_batchnorm", self.update_batchnorm)
        checks.whole("batches", self.batches, 1)
        super().__post_init__()
        self._second = SecondSet(aside=not self.evaluate, statistics=self.update_batchnorm)

    # What each defines.

    @abstractmethod
    def take(self, trainer: "Trainer") -> None:
        """Take the weights of now into the mean, which may be of themselves alone."""

    def moments(self) -> list[Duration]:
        """Return what must come within the run for a snapshot to be taken."""
        return [as_unit("every", self.every)]

    def reached(self) -> bool:
        """Return whether the first snapshot may be taken by now."""
        return True

    # What all do.

    def read_checkpoint(
        self, trainer: "Trainer", pl_module: "LightningModule", checkpoint: dict[str, Any]
    ) -> None:
        super().read_checkpoint(trainer, pl_module, checkpoint)
        if self.state_key not in checkpoint["callbacks"]:
            self._second.values, self._state = None, {}  # of an average of others there are no snapshots

    def foreign_counts(self, moves: int) -> dict[str, Any]:
        return {}

    def claims(self) -> Iterable[Claim]:
        ours = []
        if self.evaluate and self._estimates:
            remedy = f"set update_batchnorm=False in {self.state_key}"
            ours = [Claim("batchnorm", self.state_key, None, remedy)]
        return [*super().claims(), *ours]

    @property
    def _estimates(self) -> bool:
        return any(slot.estimated for slot in self._second.slots.values())

    def begin(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        self._passed = self.clock.passed(as_unit("every", self.every))
        self._second.tell(trainer, self.state_key)
        for late in filter(None, map(self.clock.too_late, self.moments())):
            warn(trainer, f"{self.state_key}: {late}")
        if self._second.shadows is None and self._second.values is not None:
            self.begin_average(trainer)

    def begin_average(self, trainer: "Trainer") -> dict[str, Any]:
        counts = super().begin_average(trainer)
        self._snapshots, self._estimated = counts.get("snapshots", 0), counts.get("estimated", -1)
        return counts

    def on_train_batch_end(self, trainer: "Trainer", pl_module: "LightningModule", *_: Any) -> None:
        before, self._passed = self._passed, self.clock.passed(as_unit("every", self.every))
        begun = self._second.shadows is not None
        if self._passed > before and (begun or self.reached()):
            if not begun:
                self.begin_average(trainer)
            self.take(trainer)
        if self._second.shadows is not None and self.clock.attempted and self.reports(trainer):
            self.report(trainer, pl_module, snapshots=self._snapshots, distance=self._second.distance())

    def on_validation_epoch_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        # Here, where every callback has put in the weights that it wants evaluated.
        if self.evaluate and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.adjust(trainer, pl_module)

    def adjust(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        self._estimate(trainer, pl_module, reestimate_for_validation)

    def _estimate(
        self, trainer: "Trainer", pl_module: "LightningModule", estimate: Callable[..., int]
    ) -> None:
        """Estimate the statistics for what the module holds, unless no step was made since the last time."""
        shadows, position = self._second.shadows, self.clock.position
        if shadows is not None and self._estimates and self._estimated != position:
            estimate(trainer, pl_module, most=self.batches)
            shadows.take_estimates()
            self._estimated = position

    def finish(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        if self._second.shadows is None:
            reason = "no multiple of every came" if self.reached() else "start did not come"
            told = f"averaged nothing, since {reason} before the end of the run: it keeps the live weights"
            warn(trainer, f"{self.state_key} {told}")
            return
        if not self.evaluate:
            self._second.show(trainer)
            self._estimate(trainer, pl_module, reestimate_batchnorm)
            self._second.hide()
        super().finish(trainer, pl_module)
        if self.evaluate:
            self._estimate(trainer, pl_module, reestimate_batchnorm)

    def counts(self) -> dict[str, Any]:
        return {"snapshots": self._snapshots, "estimated": self._estimated}

    def outcome(self) -> dict[str, float | int | str]:
        return {"snapshots": self._snapshots}
