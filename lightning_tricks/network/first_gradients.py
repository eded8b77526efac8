"""Whether parameters that were opened get a gradient at all."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.optim import Optimizer

from lightning_tricks.core.checks import listed

__all__ = ["FirstGradients"]


class FirstGradients:
    """Opened parameters, by name, that no gradient has come for yet."""

    def __init__(self) -> None:
        """Wait for none."""
        self._awaited: dict[str, nn.Parameter] = {}

    def await_(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Wait for the gradients of ``parameters``, too."""
        # Of one whose entries all lie in other processes, no gradient comes here.
        self._awaited |= {name: p for name, p in parameters.items() if p.numel()}

    def look(self) -> None:
        """Wait no longer for those that have come; to be called after each backward pass."""
        if self._awaited:
            self._awaited = {name: p for name, p in self._awaited.items() if p.grad is None}

    def missing(self, optimizer: Optimizer) -> str:
        """Return the parameters that ``optimizer`` is about to step without one, in words; each once."""
        if not self._awaited:
            return ""
        stepped = {p for group in optimizer.param_groups for p in group["params"]}
        silent = [name for name, p in self._awaited.items() if p in stepped and p.grad is None]
        self._awaited = {name: p for name, p in self._awaited.items() if p not in stepped}
        return listed(silent)
