"""The loss of ``training_step`` as a function of a module and a batch, of which nothing remains."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_tricks.lifecycle.evaluation import kept_metric
from lightning_tricks.lifecycle.training_pass import only_looking

__all__ = ["looking_at_loss"]


@contextmanager
def looking_at_loss(
    trainer: Trainer, pl_module: LightningModule
) -> Iterator[Callable[[nn.Module, Any], Tensor]]:
    """Give what returns the loss of a batch, shape (), in evaluation mode and without logging.

    It calls ``training_step`` past the strategy, so that other tensors may stand in the module meanwhile, and
    in the weights' own precision: without a gradient scaler, small gradients of float16 would be lost.

    Args:
        trainer: The Trainer of the run, which is in ``fit``.
        pl_module: Its module, which leaves optimization to Lightning.
    """
    plugin = trainer.precision_plugin
    metrics = [part for part in pl_module.modules() if isinstance(part, Metric)]

    def loss(module: nn.Module, batch: Any) -> Tensor:
        arguments = trainer.fit_loop.epoch_loop._build_kwargs(OrderedDict(), batch, 0)
        with ExitStack() as stack:
            mixed = isinstance(plugin, MixedPrecision)
            stack.enter_context(nullcontext() if mixed else plugin.train_step_context())
            for metric in metrics:
                # What is counted while gradients are vectorized would be no tensor afterwards.
                stack.enter_context(kept_metric(metric))
            found: Any = pl_module.training_step(*arguments.values())
        found = found.get("loss") if isinstance(found, dict) else found
        if not isinstance(found, Tensor) or found.numel() != 1:
            raise ValueError(f"training_step must return one loss to be looked at, got {found!r:.80}")
        return found.reshape(())

    own = vars(pl_module)
    silent: dict[str, Any] = {name: lambda *_, **__: None for name in ("log", "log_dict")}
    former = {name: own[name] for name in silent if name in own}
    with only_looking(trainer, pl_module, ()), torch.enable_grad():
        own.update(silent)
        try:
            yield loss
        finally:
            for name in silent:
                del own[name]
            own.update(former)
