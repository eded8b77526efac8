"""The passes of automatic optimization, for techniques that need more of them than one forward and backward.

Lightning makes a closure for each batch: forward pass, ``zero_grad``, backward pass. :class:`Closures` stands
in the place where it is made, and lets a technique say what is done instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from lightning.fabric.utilities.seed import _set_rng_states
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.loops.utilities import _block_parallel_sync_behavior
from lightning.pytorch.trainer.call import _call_strategy_hook
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
from torch import Tensor
from torch._functorch import config as functorch_config
from torch.nn.parallel import DistributedDataParallel
from torchmetrics import Metric

from lightning_tricks.lifecycle.evaluation import kept_metric, replaced
from lightning_tricks.lifecycle.keeping import kept_tensors
from lightning_tricks.lifecycle.randomness import collected_states

__all__ = ["Closures", "Pass", "averaged", "check_automatic", "unseen"]


class Pass:
    """The forward and backward pass of one batch.

    Attributes:
        begins: Whether an accumulation begins with it, so that gradients are cleared.
        steps: Whether an optimizer step follows it.
    """

    def __init__(self, trainer: Trainer, closure: Any, batch: Any, optimizer: Any) -> None:
        """Take what ``closure`` would do with ``batch``."""
        self._trainer, self._closure, self._batch, self._optimizer = trainer, closure, batch, optimizer
        self.begins: bool = closure._zero_grad_fn is not None
        self.steps: bool = not trainer.fit_loop._should_accumulate()
        self._random: Any = None

    def forward(self) -> Any:
        """Run ``training_step`` and return Lightning's result, with ``closure_loss``, ``loss``, ``extra``."""
        return self._closure._step_fn()

    def zero_grad(self) -> None:
        """Clear the gradients, if an accumulation begins."""
        if self.begins:
            self._closure._zero_grad_fn()

    def backward(self, loss: Tensor, **options: Any) -> None:
        """Propagate ``loss``, through the strategy and with all hooks; scaled, if there is a scaler."""
        _call_strategy_hook(self._trainer, "backward", loss, self._optimizer, **options)

    def run(self) -> Any:
        """Do what Lightning would do, and return its result."""
        self._random = collected_states()
        result = self.forward()
        self.zero_grad()
        if result.closure_loss is not None:
            self.backward(result.closure_loss)
        return result

    def run_again(self) -> Tensor | None:
        """Add the gradients of the same batch with the same random numbers; return its loss.

        To be called within :func:`unseen`. Gradients are not cleared.
        """
        _set_rng_states(self._random)
        self._trainer.fit_loop.epoch_loop._results.batch = self._batch
        with _block_parallel_sync_behavior(self._trainer.strategy, block=not self.steps):
            result = self.forward()
            if result.closure_loss is not None:
                self.backward(result.closure_loss)
        loss: Tensor | None = result.loss
        return loss

    @contextmanager
    def several(self) -> Iterator[None]:
        """Let one forward pass be followed by several backward passes within this.

        DistributedDataParallel, which expects one, leaves the gradients of each process as they are.
        """
        # Compiled code would give away in the first what the next ones need.
        with (
            functorch_config.patch(donated_buffer=False),
            _block_parallel_sync_behavior(self._trainer.strategy),
        ):
            yield
        model = self._trainer.strategy.model
        if self.steps and isinstance(model, DistributedDataParallel):
            # Else the next forward pass would not give all processes the buffers of the first.
            model.require_forward_param_sync = True


class Closures:
    """Has a technique run the passes of all batches, until it is removed."""

    def __init__(self, trainer: Trainer, run: Callable[[Pass], Any]) -> None:
        """Take the place of Lightning's own; ``run`` returns the result of the forward pass."""
        self._trainer, self._run = trainer, run
        self._loop = trainer.fit_loop.epoch_loop.automatic_optimization
        vars(self._loop)["_make_closure"] = self._make

    def _make(self, kwargs: dict[str, Any], optimizer: Any, batch_idx: int) -> Any:
        make: Any = type(self._loop)._make_closure
        closure = make(self._loop, kwargs, optimizer, batch_idx)
        if closure._backward_fn is not None:  # a pass of StochasticWeightAveraging that learns nothing
            batch = next(iter(kwargs.values()))
            run = torch.enable_grad()(lambda: self._run(Pass(self._trainer, closure, batch, optimizer)))
            vars(closure)["closure"] = run
        return closure

    def remove(self) -> None:
        """Give the place back."""
        vars(self._loop).pop("_make_closure", None)


def check_automatic(pl_module: LightningModule, name: str) -> None:
    """Accept a module that leaves its passes to Lightning.

    Raises:
        ValueError: If it optimizes by itself; ``name`` is who refuses it.
    """
    if not pl_module.automatic_optimization:
        raise ValueError(
            f"automatic_optimization must be True for {name}, which runs the passes of a step itself, got "
            f"False in {type(pl_module).__name__}"
        )


@torch.no_grad()
def averaged(trainer: Trainer, tensors: list[Tensor]) -> list[Tensor]:
    """Return the means of ``tensors`` over all processes, which give equally many, of the same kinds."""
    found: dict[int, Tensor] = {}
    kinds: dict[object, list[int]] = {}
    for index, tensor in enumerate(tensors):
        kinds.setdefault((tensor.dtype, tensor.device), []).append(index)
    for places in kinds.values():
        flat = torch.cat([tensors[index].flatten() for index in places])
        flat = trainer.strategy.reduce(flat, reduce_op="mean")
        parts = flat.split([tensors[index].numel() for index in places])
        found |= {index: part.view_as(tensors[index]) for index, part in zip(places, parts, strict=True)}
    return [found[index] for index in range(len(tensors))]


@contextmanager
def unseen(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Let passes within this leave nothing but gradients.

    What they log, count in metrics, write into buffers such as the statistics of BatchNorm or into frozen
    parameters, and draw of random numbers is taken back.
    """
    with ExitStack() as stack:
        stack.callback(_set_rng_states, collected_states())
        results = {"_results": _ResultCollection(training=True)}
        stack.enter_context(replaced(trainer.fit_loop.epoch_loop, results))
        stack.enter_context(replaced(trainer, {"loggers": [DummyLogger() for _ in trainer.loggers]}))
        for module in pl_module.modules():
            if isinstance(module, Metric):
                stack.enter_context(kept_metric(module))
        stack.enter_context(kept_tensors(pl_module, learning=False))
        yield
