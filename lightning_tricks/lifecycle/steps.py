"""The optimizer steps of a run as they happen: which one comes, whether it does, and when it has ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_tricks.lifecycle.clock import step_applied

__all__ = ["Steps"]


class Steps:
    """Watches the optimizers of a run.

    Attributes:
        again: Whether the optimizer that is about to step asks for a gradient of this step once more.
    """

    def __init__(self, after: Callable[[Optimizer, bool | Tensor], None]) -> None:
        """Call ``after`` with each optimizer that made a step, and with whether it changed anything."""
        self.again: bool = False
        self._after = after
        self._scaled = False
        self._hooks: list[Any] = []
        self._begin(None)

    def _begin(self, count: int | None) -> None:
        self._count = count  # of steps in the batch, within one
        self._stepping: Optimizer | None = None
        self._depth = 0  # of steps within a step
        self._learned = False  # whether the batch had a backward pass

    def watch(self, trainer: Trainer) -> None:
        """Begin to watch."""
        self._scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        for optimizer in trainer.optimizers:
            self._hooks.append(optimizer.register_step_pre_hook(self._enter))
            self._hooks.append(optimizer.register_step_post_hook(self._leave))

    def unwatch(self, trainer: Trainer) -> None:
        """Watch no longer."""
        for optimizer in trainer.optimizers:
            self._unmark(optimizer)
        while self._hooks:
            self._hooks.pop().remove()

    def begin_batch(self) -> None:
        """Forget the last batch."""
        self._begin(0)

    def end_batch(self) -> int:
        """Return how many steps the batch made."""
        count = self._count or 0
        self._begin(None)
        return count

    def learned(self) -> None:
        """Note that the batch has a backward pass."""
        self._learned = True

    def comes(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> bool:
        """Return whether a step of ``optimizer`` follows, of which Lightning says that it does.

        If so, its gradients are true ones from here on. If not, it has none.
        """
        if self._scaled and pl_module.automatic_optimization and not self._learned:
            # The batch gave no loss, so Lightning leaves gradients of others before it scaled and unused.
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
            return False
        # In manual optimization a step that the scaler cancelled looks the same.
        self.again = pl_module.automatic_optimization and self._stepping is optimizer
        self._stepping = optimizer
        # Lightning leaves the gradients of fused optimizers scaled; everything after this wants them true.
        if self._scaled and getattr(optimizer, "_step_supports_amp_scaling", False):
            precision: Any = trainer.precision_plugin  # of which only some kinds have a scaler
            precision.scaler.unscale_(optimizer)
        return True

    def _enter(self, *_: Any) -> None:
        self._depth += 1

    def _leave(self, optimizer: Optimizer, *_: Any) -> None:
        self._depth -= 1
        if self._count is None or self._depth > 0:
            # torch makes steps at rate 0 to create states that a checkpoint is loaded into; and a step that
            # calls that of its parent class has not ended yet.
            return
        if optimizer is not self._stepping:
            name = type(optimizer).__name__
            raise RuntimeError(
                f"{name} must be stepped as self.optimizers() gives it, but was stepped past Lightning and "
                "all techniques: leave out use_pl_optimizer=False"
            )
        self._stepping = None
        self._count += 1
        self._after(optimizer, step_applied(optimizer))
        self._unmark(optimizer)

    def _unmark(self, optimizer: Optimizer) -> None:
        # What cancelled this step of a fused optimizer would cancel the next one too. With a scaler the mark
        # is the scaler's, which takes it away itself.
        if not self._scaled:
            vars(optimizer).pop("found_inf", None)
