"""The probe that a run gives: its module, its data, and the loss of ``training_step``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_tricks.fusion.methods import FusionMethod
from lightning_tricks.fusion.probe import Probe, Probing
from lightning_tricks.lifecycle.closures import check_automatic
from lightning_tricks.lifecycle.step_loss import looking_at_loss
from lightning_tricks.lifecycle.strategies import check_whole
from lightning_tricks.lifecycle.training_pass import training_batches, validation_batches
from lightning_tricks.lifecycle.weights import Weights

__all__ = ["RunProbe"]


@dataclass(frozen=True)
class _Batches:
    """The same batches each time they are gone through.

    Attributes:
        make: Yields them.
    """

    make: Callable[[], Iterator[Any]]

    def __iter__(self) -> Iterator[Any]:
        return self.make()


@dataclass(frozen=True)
class RunProbe:
    """Shows a method what it wants to look at of a run, if it does.

    Attributes:
        method: Which looks.
        weights: Those of the module, with its run.
    """

    method: FusionMethod
    weights: Weights

    @property
    def _wanted(self) -> Probing | None:
        method = self.method
        return method if isinstance(method, Probing) and method.needs_probe else None

    def check(self) -> None:
        """Accept a run that can show it.

        Raises:
            ValueError: If it cannot; says why.
        """
        if (method := self._wanted) is None:
            return
        trainer = self.weights.trainer
        check_automatic(self.weights.module, repr(method))
        check_whole(trainer, repr(method))
        if method.held_out and not trainer.enable_validation:
            raise ValueError(f"there must be a validation loop for {method!r} to look at its data, got none")

    def rehearse(self) -> None:
        """Look at one batch, so that what cannot be looked at shows before training.

        Raises:
            ValueError: If there is no batch, or ``training_step`` returns no loss for it.
        """
        with self.opened() as probe, torch.no_grad():
            if probe is None:
                return
            for batch in probe.batches:
                probe.loss(probe.module, batch)
                return
            raise ValueError(f"there must be a batch for {self.method!r} to look at, got none")

    @contextmanager
    def opened(self) -> Iterator[Probe | None]:
        """Give the probe; ``None`` if none is wanted.

        To be called by all processes together; each looks at its own batches.
        """
        if (method := self._wanted) is None:
            yield None
            return
        trainer, module = self.weights.trainer, self.weights.module
        source = validation_batches if method.held_out else training_batches
        batches = _Batches(lambda: source(trainer, module, method.batches))
        device = trainer.strategy.root_device

        def add_up(tensor: Tensor) -> Tensor:
            total = trainer.strategy.reduce(tensor.to(device, copy=True), reduce_op="sum")
            return total.to(tensor.device)

        with looking_at_loss(trainer, module) as loss:
            yield Probe(module, batches, loss, add_up)
