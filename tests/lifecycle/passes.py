"""Extra passes at the end of a run, and all that they could disturb."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule
from torch.utils.data import DataLoader

from tests.toys import Loader, StopError, trainer, weights


class AtEnd(Callback):
    """Calls a function at the end of fit, and notes what a run shows before and after it."""

    def __init__(self, function) -> None:
        self.function, self.result, self.error = function, None, None
        self.before: dict[str, Any] = {}
        self.after: dict[str, Any] = {}

    def on_train_end(self, trainer, pl_module) -> None:
        self.before = visible(trainer, pl_module)
        try:
            self.result = self.function(trainer, pl_module)
        except StopError as error:
            self.error = error
        self.after = visible(trainer, pl_module)


def visible(trainer, pl_module) -> dict[str, Any]:
    """Return copies of all that a pass could disturb."""
    checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    shown = {
        "weights": weights(pl_module),
        "grads": [None if p.grad is None else p.grad.clone() for p in pl_module.parameters()],
        "checkpoint": {k: checkpoint[k] for k in ("loops", "optimizer_states", "global_step", "epoch")},
        "modes": [module.training for module in pl_module.modules()],
        "random": [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()],
        "metrics": [trainer.callback_metrics, trainer.logged_metrics, trainer.progress_bar_metrics],
        "callbacks": [id(callback) for callback in trainer.callbacks],
        "loggers": [id(logger) for logger in trainer.loggers],
        "stage": str(trainer.state.stage),
        "hook": pl_module._current_fx_name,
        "module": sorted(vars(pl_module)),
        "attributes": {
            name: copy.deepcopy(value)
            for metric in pl_module.modules()
            for name, value in vars(metric).items()
            if name in {"tp", "fp", "_update_count", "_computed"}
        },
        "grad mode": torch.is_grad_enabled(),
    }
    return copy.deepcopy(shown)


def fixed(batches: int, **options: Any) -> DataLoader:
    """Return a plain loader of batches for validation."""
    return DataLoader(list(Loader(batches, seed=9)), batch_size=None, **options)


def run(module: LightningModule, function, *callbacks, train=None, val=None, **settings: Any) -> AtEnd:
    """Train three epochs, call ``function`` at the end, and return what was seen of it."""
    at_end = AtEnd(function)
    runner = trainer(*callbacks, at_end, **settings)
    runner.fit(module, train or Loader(), val or Loader(2, seed=9))
    return at_end
