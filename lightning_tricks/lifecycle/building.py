"""The moment at which a module has all its layers, but neither optimizers nor a checkpoint's weights.

Lightning calls ``setup`` of callbacks before ``setup`` and ``configure_model`` of the module, where a module
may yet make layers, and the next hook of callbacks only when weights are loaded and optimizers exist. What
changes layers has to act between the two, in evaluations as well, or their checkpoints do not load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import WeightAveraging

from lightning_tricks.core.conflicts import ConflictError

__all__ = ["Built", "check_nothing_copied"]


def check_nothing_copied(callbacks: Iterable[Callback]) -> None:
    """Accept ``callbacks`` if none copies the module before its layers change.

    Raises:
        ConflictError: If Lightning's own averaging is among them.
    """
    for callback in callbacks:
        if isinstance(callback, WeightAveraging):
            name = type(callback).__name__
            raise ConflictError(f"layers must change before {name} copies the module: remove {name}")


class Built:
    """Stands on a module in the place of ``configure_model`` until that is called, or until it is removed."""

    def __init__(self, pl_module: LightningModule, then: Callable[[], None]) -> None:
        """Take the place; ``then`` is called once, when the module has configured itself."""
        self._attributes, self._then = vars(pl_module), then
        self._former = self._attributes.get("configure_model")
        self._configure = pl_module.configure_model
        # A function, because Lightning looks at its code to see whether the hook does anything.
        self._instead = lambda: self._build()
        self._attributes["configure_model"] = self._instead

    def _build(self) -> None:
        self.remove()
        self._configure()
        self._then()

    def remove(self) -> None:
        """Give the place back."""
        if self._attributes.get("configure_model") is not self._instead:
            return
        if self._former is None:
            del self._attributes["configure_model"]
        else:
            self._attributes["configure_model"] = self._former
