"""Methods of fusion that learn from the module whose weights are fused, where there is one at hand."""

from __future__ import annotations

from abc import abstractmethod

from torch import nn

from lightning_tricks.fusion.methods import FusionMethod

__all__ = ["OfModule", "for_module"]


class OfModule(FusionMethod):
    """Base of policies that a module completes."""

    @abstractmethod
    def for_module(self, module: nn.Module) -> FusionMethod:
        """Return the method for models that are state dicts of ``module``.

        Raises:
            ValueError: If it cannot fuse such models.
        """


def for_module(method: FusionMethod, module: nn.Module) -> FusionMethod:
    """Return ``method`` for models that are state dicts of ``module``."""
    return method.for_module(module) if isinstance(method, OfModule) else method
