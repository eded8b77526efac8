"""Which parameters learn, switched within a run: what has to follow, and what comes back after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from lightning_tricks.lifecycle.strategies import BeforeLoad, check_places, flat_units, follow_trainable

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from lightning_tricks.lifecycle.technique import Technique

__all__ = ["Trainable", "switch_"]


def switch_(flags: Mapping[nn.Parameter, bool]) -> None:
    """Let each parameter learn or not, as its flag says."""
    for parameter, flag in flags.items():
        parameter.requires_grad_(flag)


class Trainable:
    """What a technique does whose parameters learn for a part of the run; which and when is its own.

    All parameters stay in their optimizers, and only ``requires_grad`` is switched.
    """

    def __init__(self) -> None:
        """Know of no run."""
        self._before: dict[nn.Parameter, bool] = {}
        self._layers: Mapping[nn.Module, list[nn.Parameter]] = {}
        self._module: nn.Module | None = None
        self._before_load: BeforeLoad | None = None

    @property
    def taken(self) -> bool:
        """Whether it has the parameters of a run."""
        return self._module is not None

    def take(
        self,
        technique: Technique,
        trainer: Trainer,
        pl_module: LightningModule,
        parameters: Iterable[nn.Parameter],
        as_found: Callable[[], None],
    ) -> None:
        """Note how ``parameters`` are; to be called in ``regroup``, before they are switched.

        Not in ``prepare``, where another technique may yet look at what the user froze.

        Args:
            technique: Who will switch them.
            trainer: The Trainer of the run.
            pl_module: Its module.
            parameters: Which.
            as_found: Switches them as they were when the checkpoint was written that a strategy of shards is
                about to load and ``technique`` has just read: only so do its optimizers fit.
        """

        def look(checkpoint: dict[str, Any]) -> None:
            technique.read_checkpoint(trainer, pl_module, checkpoint)
            check_places(trainer, checkpoint)
            as_found()

        self._module = pl_module
        self._before = {parameter: parameter.requires_grad for parameter in parameters}
        self._before_load = BeforeLoad(trainer.strategy, look)

    def look_after(self, layers: Mapping[nn.Module, list[nn.Parameter]]) -> None:
        """Run ``layers`` in evaluation mode while the parameters given with each are all frozen."""
        self._layers = layers

    def follow(self, technique: Technique, trainer: Trainer) -> None:
        """Bring gradients and the modes of layers in line; to be called after each switch."""
        follow_trainable(trainer)
        still = [layer for layer, held in self._layers.items() if not any(p.requires_grad for p in held)]
        technique.conductor.modes.keep(technique.state_key, still)

    def freeze(self) -> None:
        """Freeze all parameters, and drop their gradients, or momentum and decay would go on."""
        for parameter in self._before:
            parameter.requires_grad_(False)
            parameter.grad = None

    def free(self) -> None:
        """Let the parameters learn or not, as they were found."""
        switch_(self._before)

    def give_back(self, technique: Technique) -> None:
        """Let everything be as it was found; under FSDP1 ``requires_grad`` only before the next fit."""
        if self._module is None:
            return
        assert self._before_load is not None
        self._before_load.remove()
        if flat_units(technique.conductor.trainer):
            # A checkpoint that is written after the run takes what may learn to have been stepped.
            technique.conductor.on_next_fit(partial(switch_, self._before))
        else:
            self.free()
        # After an error in validation the whole network is left in its evaluation mode.
        technique.conductor.modes.release(technique.state_key, training=self._module.training)
        self._module, self._before_load, self._before, self._layers = None, None, {}, {}
