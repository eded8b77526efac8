"""Which weights and buffers had changed by the end of each epoch."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

__all__ = ["Changed"]


class Changed(Callback):
    """Notes, for each epoch, the names of all that differs by a bit from the start, and what is remembered.

    Attributes:
        names: Of weights and buffers, a set for each epoch.
        remembered: Of parameters for which the optimizer holds state, likewise.
    """

    def __init__(self) -> None:
        self.names: list[set[str]] = []
        self.remembered: list[set[str]] = []
        self.losses: list[float] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = {name: value.clone() for name, value in pl_module.state_dict().items()}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now = pl_module.state_dict()
        self.names.append({name for name, value in self.start.items() if not torch.equal(now[name], value)})
        state = trainer.optimizers[0].state
        self.remembered.append({name for name, p in pl_module.named_parameters() if state.get(p)})
        self.losses.append(float(trainer.callback_metrics["train_loss"]))
