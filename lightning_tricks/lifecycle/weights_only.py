"""Weights-only checkpoints, for which Lightning calls no callback: edited by way of the module's own hook."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_tricks.lifecycle.checkpoints import holds_beside

__all__ = ["WeightsOnlyHook", "remove"]


def _full(checkpoint: Mapping[str, Any]) -> bool:
    # The empty entry is that of a hook before this one.
    return "callbacks" in checkpoint and not (holds_beside(checkpoint) and checkpoint["callbacks"] == {})


class WeightsOnlyHook:
    """Stands on a module in the place of its ``on_save_checkpoint`` and edits weights-only checkpoints.

    Lightning calls no callback for those. Full checkpoints, and those of another Trainer, pass unchanged.
    A copy of the module gets the module's own method again.
    """

    def __init__(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        edit: Callable[[dict[str, Any]], None],
    ) -> None:
        """Take the place; ``edit`` is called before the module's own method."""
        self._trainer, self._module, self._edit = trainer, pl_module, edit
        self._before = vars(pl_module).get("on_save_checkpoint")
        self._own = pl_module.on_save_checkpoint
        vars(pl_module)["on_save_checkpoint"] = self
        self._active = True

    def __call__(self, checkpoint: dict[str, Any]) -> None:
        if self._active and not _full(checkpoint) and self._module.trainer is self._trainer:
            self._edit(checkpoint)
            if holds_beside(checkpoint):
                checkpoint["callbacks"] = {}  # or Lightning would ask no callback when it loads this
        self._own(checkpoint)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._module, "on_save_checkpoint")

    def remove(self) -> None:
        """Give the place back; where another has taken it since, only fall silent."""
        self._active = False
        if vars(self._module).get("on_save_checkpoint") is self:
            del vars(self._module)["on_save_checkpoint"]
            if self._before is not None:
                vars(self._module)["on_save_checkpoint"] = self._before


def remove(hook: Callable[[dict[str, Any]], None]) -> None:
    """Remove a :class:`WeightsOnlyHook`; of a copy, which has become the module's own method, nothing."""
    if isinstance(hook, WeightsOnlyHook):
        hook.remove()
