"""Two clocks: optimizer steps attempted, which drive schedules, and steps applied, which drive averages.

Neither is ``trainer.global_step``: that adds up all optimizers, and counts steps that never happened.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_tricks.core.duration import Duration, Horizon

__all__ = ["Clock", "step_applied"]


class Clock:
    """Where a run stands.

    Attributes:
        position: Training batches with at least one attempted optimizer step; in automatic optimization
            that is optimizer steps attempted. Drives schedules and durations.
        updates: Those among them in which at least one step was applied. Drives averages. A step that a
            fused optimizer cancels on its device is known there alone: it is counted here, and
            ``applied`` tells.
        attempted: Whether the batch that just ended attempted a step.
        applied: Whether it applied one; a 0-d bool tensor if only the device knows.
        epoch: Epochs completed.
        former_ends: ``Horizon.epoch_ends`` of the run that wrote the checkpoint; ``None`` if that is unknown.
    """

    def __init__(self) -> None:
        """Start at zero."""
        self.position: int = 0
        self.updates: int = 0
        self.epoch = 0
        self.attempted: bool = False
        self.applied: bool | Tensor = False
        self.horizon_used: bool = False
        self.former_ends: tuple[int, ...] | None = None
        self._horizon = Horizon(None)

    @property
    def horizon(self) -> Horizon:
        """The length of the run."""
        self.horizon_used = True
        return self._horizon

    @property
    def total(self) -> int | None:
        """Optimizer steps of the run, if known, for words alone: nothing then follows from its length."""
        return self._horizon.total

    @property
    def end(self) -> tuple[int, int] | None:
        """Optimizer steps and whole epochs of the run, if both are known, for words alone."""
        total = self._horizon.total
        return (total, int(self._horizon.epoch_at(total))) if total and self._horizon.epoch_ends else None

    def lay(self, horizon: Horizon) -> None:
        """Take the length of the run that starts."""
        self._horizon = horizon
        self.horizon_used = False

    def begin_batch(self) -> None:
        """Forget the last batch."""
        self.attempted, self.applied = False, False

    def count(self, applied: bool | Tensor) -> None:
        """Take note of a step that was applied, or of one of which only the device knows."""
        either = isinstance(applied, Tensor) or isinstance(self.applied, Tensor)
        if either and applied is not True and self.applied is not True:
            self.applied = torch.as_tensor(self.applied).to(applied) | applied
        else:
            self.applied = bool(self.applied) or bool(applied)

    def end_batch(self) -> None:
        """Advance by the batch that ends."""
        self.position += self.attempted
        self.updates += isinstance(self.applied, Tensor) or self.applied

    def reached(self, moment: Duration) -> bool:
        """Return whether ``moment`` of the run has come.

        Whole epochs are counted as they end, so that loaders without length work.

        Raises:
            ValueError: If the moment needs a length of the run that is unknown.
        """
        if moment.unit == "epochs" and moment.amount == int(moment.amount):
            return self.epoch >= moment.amount
        return self.position >= self.step_after(0, moment)

    def too_late(self, moment: Duration, *, for_steps: bool = False) -> str | None:
        """Return in words that ``moment`` comes past the end of the run, if that is known to be so.

        Args:
            moment: Of the run.
            for_steps: Whether a step must come after it, or else it has no effect.
        """
        total = self._horizon.total
        if total is None or (moment.unit == "epochs" and not self._horizon.epoch_ends):
            return None
        step = self._horizon.end(0, moment)
        told = f"{moment.name} comes at step {step}, but the run has {total} steps: it has no effect"
        return told if step > total or (for_steps and step == total) else None

    def step_after(self, step: int, length: Duration) -> int:
        """Return the step that comes ``length`` after ``step``, by the run's length.

        Raises:
            ValueError: If that is unknown, and needed.
        """
        if length.unit == "steps":  # needs no length of the run, so none is marked as used
            return step + int(length.amount)
        return self.horizon.end(step, length)

    def passed(self, unit: Duration) -> int:
        """Return how many times ``unit``, which is above 0, has passed since the run began.

        Raises:
            ValueError: If that needs a length of the run that is unknown.
        """
        if unit.unit == "steps":  # needs no length, so none is marked as used
            return self.position // int(unit.amount)
        # A multiple that rounding puts a little after a step still is that step's.
        return int(self.horizon.elapsed(0, self.position, unit) + 1e-9)

    def saved(self) -> dict[str, Any]:
        """Return the counts, and at which of them epochs end."""
        ends = self._horizon.epoch_ends
        return {"position": self.position, "updates": self.updates, "epoch_ends": list(ends or [])}

    def restore(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.position, self.updates = int(state["position"]), int(state["updates"])
        self.former_ends = tuple(state["epoch_ends"]) or None


def step_applied(optimizer: torch.optim.Optimizer) -> bool | Tensor:
    """Return whether the step that ``optimizer`` just made changed anything.

    A step with no gradient at all changes nothing, though torch's hooks fire for it. A fused optimizer
    with ``found_inf`` set cancels its step on the device; then the answer is a 0-d bool tensor.
    """
    if not any(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
        return False
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf == 0 if isinstance(found_inf, Tensor) else True
