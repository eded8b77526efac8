"""Processes that each hold all weights: keeping their gradients in step."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

__all__ = ["follow_trainable"]


def follow_trainable(trainer: Trainer) -> None:
    """Average the gradients of exactly the parameters that are trainable now over all processes.

    DistributedDataParallel looks once, when it wraps the module: what is opened later it never averages
    (https://github.com/Lightning-AI/pytorch-lightning/issues/20340), and what is frozen later it waits for.
    So the module is wrapped again. To be called by all processes, between two optimizer steps.
    """
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy) and isinstance(strategy.model, DistributedDataParallel):
        strategy.model = strategy.model.module
        strategy.configure_ddp()
