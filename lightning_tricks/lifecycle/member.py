"""What a technique is to the conductor: the phases that it may define."""

# Without postponed annotations: LightningCLI would look names in those of ``Member`` up where its subclasses
# are defined, and know the type of none of their settings when one is missing there.

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_tricks.core.conflicts import Claim

__all__ = ["Member"]


class Member(Callback, ABC):
    """What the conductor asks of a technique."""

    finish_order: ClassVar[int] = 0
    build_order: ClassVar[int] = 0

    @property
    def gradient_stage(self) -> str | None:
        """Its place in GRADIENT_ORDER, if it works on gradients."""
        return None

    def build(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Change layers of a complete module, in any run, before weights load and optimizers exist.

        In the order of ``build_order``.
        """

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose parameters and check settings against the module; nothing is restored yet."""

    @abstractmethod
    def claims(self) -> Iterable[Claim]:
        """Return what it must own alone; called after :meth:`prepare`."""

    def touched(self) -> Iterable[Tensor | nn.Module]:
        """Return what it works on or reads beside what it claims: parameters, buffers, layers."""
        return ()

    def signs(self) -> dict[str, str]:
        """Return what it has found wrong with the run and told, by kind, in words."""
        return {}

    def regroup(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Split the parameter groups of optimizers, before any schedule looks at them."""

    def take_state(self, trainer: Trainer) -> None:
        """Take back what a checkpoint held for it, if one was loaded."""

    def initialize(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Change weights at the start of a run that continues none, before any technique begins.

        In the order of ``build_order``.
        """

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start, with the run's length known and everything restored."""

    def before_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Look at weights before ``optimizer`` makes a step, and before any other hook changes them."""

    def after_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer, applied: bool | Tensor
    ) -> None:
        """Act right after ``optimizer`` made a step.

        Args:
            trainer: The Trainer of the run.
            pl_module: Its module.
            optimizer: The optimizer.
            applied: Whether the step changed anything; a 0-d bool tensor if only the device knows.
        """

    def after_update(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Change the weights after a batch whose steps were applied, before any other hook sees them."""

    @property
    def evaluates_average(self) -> bool:
        """Whether evaluations see its :meth:`average`, and the module holds it after the run."""
        return False

    def average(self) -> dict[str, Tensor] | None:
        """Return the averaged weights.

        Returns:
            Tensors by their names in the module's state dict, wrappers' names left out; ``None`` as long as
            there is no average. Not to be changed, and valid until the next step only.
        """
        return None

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put into the module what it shall hold after the run."""
