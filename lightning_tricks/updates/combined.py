"""Several optimizers as one, for weights of different kinds in automatic optimization."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, overload

import torch
from torch.optim import Optimizer

__all__ = ["CombinedOptimizer", "stepper", "steppers"]


class CombinedOptimizer(Optimizer):
    """Steps each of several optimizers, which share its groups and its state.

    Groups may be split and settings in them changed as in any optimizer: each group says in ``"steps"`` which
    of the optimizers it belongs to.
    """

    def __init__(self, optimizers: list[Optimizer]) -> None:
        """Take the groups of ``optimizers``, of which each parameter is in one."""
        for index, optimizer in enumerate(optimizers):
            for group in optimizer.param_groups:
                group["steps"] = index
                name = f"{index} {type(optimizer).__name__}"  # names of groups must differ
                group["name"] = f"{name}, {group['name']}" if "name" in group else name
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        self.optimizers = optimizers

    def __getstate__(self) -> dict[str, Any]:
        """Keep the optimizers too, which torch would leave out."""
        return {**super().__getstate__(), "optimizers": self.optimizers}

    def __repr__(self) -> str:
        """Name the optimizers."""
        return f"CombinedOptimizer({', '.join(type(each).__name__ for each in self.optimizers)})"

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make a step of each, after one call of ``closure``."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for index, optimizer in enumerate(self.optimizers):
            optimizer.param_groups = [group for group in self.param_groups if group["steps"] == index]
            optimizer.state = self.state
            optimizer.step()
        return loss


def steppers(optimizers: Iterable[Optimizer]) -> Iterator[Optimizer]:
    """Yield ``optimizers``, and instead of a combined one those that it steps."""
    for optimizer in optimizers:
        yield from optimizer.optimizers if isinstance(optimizer, CombinedOptimizer) else (optimizer,)


def stepper(optimizer: Optimizer, group: Mapping[str, Any]) -> Optimizer:
    """Return what steps ``group`` of ``optimizer``."""
    return optimizer.optimizers[group["steps"]] if isinstance(optimizer, CombinedOptimizer) else optimizer
