"""A pass over training data that only looks: the module's own ``training_step``, and nothing of it remains.

What in a batch is input, and which way it takes through the module, nothing but ``training_step`` knows. It
is the one way on which every layer is trained, it exists in each run, and any form of batch is right. So that
it only looks, optimizers, schedulers and ``manual_backward`` do nothing meanwhile, and all is put back.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import torch
from lightning.fabric.utilities.seed import _set_rng_states
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.call import _call_strategy_hook
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import nn
from torch.nn.parameter import is_lazy

from lightning_tricks.lifecycle.batch_edits import looking
from lightning_tricks.lifecycle.evaluation import replaced, undisturbed
from lightning_tricks.lifecycle.keeping import kept_generators, kept_tensors
from lightning_tricks.lifecycle.randomness import collected_states, generators_of
from lightning_tricks.lifecycle.strategies import reshard

__all__ = [
    "UNSIZED_BATCHES",
    "on_device",
    "only_looking",
    "training_batches",
    "training_steps",
    "validation_batches",
]

UNSIZED_BATCHES = 200
"""How many are looked at where a loader has no length."""


@contextmanager
def only_looking(
    trainer: Trainer, pl_module: LightningModule, learning: Iterable[nn.Module]
) -> Iterator[None]:
    """Let training steps be made of which nothing remains, weights and buffers included.

    Args:
        trainer: The Trainer of the run, which is in ``fit``.
        pl_module: Its module; all of it is in evaluation mode within this.
        learning: But these layers, which use the statistics of the batch.

    Raises:
        ValueError: If a parameter has no values yet, so that they could not be put back.
    """
    if lazy := [name for name, parameter in pl_module.named_parameters() if is_lazy(parameter)]:
        raise ValueError(
            f"parameters must be initialised before training is looked at, got the lazy {lazy[0]!r}: run a "
            "batch through the module first"
        )
    layers = list(learning)
    loader = trainer.fit_loop._combined_loader
    assert loader is not None
    reshard(trainer)
    try:
        with ExitStack() as stack:
            stack.enter_context(kept_tensors(pl_module, learning=True))
            stack.callback(reshard, trainer)  # or what is put back would be parts of wholes
            stack.enter_context(kept_generators(pl_module))
            stack.enter_context(_kept_iterators(loader))
            stack.enter_context(undisturbed(trainer, pl_module))
            stack.enter_context(_idle_optimization(pl_module))
            # Compiled code looks for hooks when it is compiled, not when it runs.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            pl_module.eval()
            for layer in layers:
                layer.train()
            yield
    except BaseException as error:
        error.add_note(
            "raised while training_step was only looked at, in evaluation mode: optimizers and "
            "manual_backward do nothing there, so that gradients are None"
        )
        raise


def training_steps(trainer: Trainer, pl_module: LightningModule, most: int | None) -> int:
    """Call ``training_step`` on the first ``most`` batches of training, or on all; return on how many.

    On several processes on as many as each of them has, because in a step one may wait for the others.
    """
    done = 0
    for batch in training_batches(trainer, pl_module, most):
        arguments = trainer.fit_loop.epoch_loop._build_kwargs(OrderedDict(), batch, done)
        trainer._logger_connector.on_batch_start(batch)
        _call_strategy_hook(trainer, "training_step", *arguments.values())
        done += 1
    return done


def training_batches(trainer: Trainer, pl_module: LightningModule, most: int | None) -> Iterator[Any]:
    """Yield the first ``most`` batches of training, or all, as ``training_step`` gets them.

    On several processes as many as each of them has. Called again, it yields the same, if it was used up.
    With ``None`` all, or 200 of a loader without length.
    """
    loader = trainer.fit_loop._combined_loader
    assert loader is not None
    with _same_draws(loader):
        # The loader itself goes on past ``limit_train_batches``, and some never end.
        batches = islice(iter(loader), _limit(trainer.num_training_batches, most))
        yield from on_device(trainer, pl_module, (batch for batch, *_ in batches), edited=True)


def validation_batches(trainer: Trainer, pl_module: LightningModule, most: int | None) -> Iterator[Any]:
    """Yield those of validation, of the first loader, likewise; within :func:`only_looking`."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    with replaced(trainer.state, {"stage": RunningStage.VALIDATING}):
        loop.setup_data()
    assert loop._combined_loader is not None
    with _kept_iterators(loop._combined_loader), _same_draws(loop._combined_loader):
        batches = islice(iter(loop._combined_loader.flattened[0]), _limit(loop._max_batches[0], most))
        yield from on_device(trainer, pl_module, batches, edited=False)


def _limit(batches: float, most: int | None) -> int:
    if most is None:
        return UNSIZED_BATCHES if math.isinf(batches) else int(batches)
    return int(min(batches, most))


@contextmanager
def _same_draws(loader: CombinedLoader) -> Iterator[None]:
    """Let what follows draw the random numbers once more that are drawn within this."""
    with ExitStack() as stack:
        stack.callback(_set_rng_states, collected_states())
        for generator in {each for part in loader.flattened for each in generators_of(part)}:
            stack.callback(generator.set_state, generator.get_state())
        yield


def on_device(
    trainer: Trainer, pl_module: LightningModule, batches: Iterator[Any], *, edited: bool
) -> Iterator[Any]:
    """Yield ``batches`` as ``training_step`` gets them, as many as each process has.

    With ``edited`` as techniques change those of training, if only to look at; without as data give them.
    """
    while True:
        batch = next(batches, None)
        # In a step one process may wait for the others.
        if not trainer.strategy.reduce_boolean_decision(batch is not None, all=True):
            return
        with looking(trainer, edited=edited):
            batch = trainer.precision_plugin.convert_input(batch)
            batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
            batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        yield batch


@contextmanager
def _kept_iterators(loader: CombinedLoader) -> Iterator[None]:
    """Let training go on with the iterators that it has, and loaders keep the workers of theirs."""
    own = [(part, dict(vars(part))) for part in loader.flattened if hasattr(part, "__dict__")]
    for part, attributes in own:
        if "_iterator" in attributes:
            part._iterator = None  # or a loader with persistent workers would begin this one anew
    try:
        with replaced(loader, {"_iterator": loader._iterator}):
            yield
    finally:
        for part, attributes in own:
            # Not by ``setattr``, which loaders forbid for settings, changed or not.
            vars(part).update(attributes)


class _Idle:
    """An optimizer or scheduler that shows itself but does nothing."""

    def __init__(self, behind: Any) -> None:
        self._behind = behind

    def __getattr__(self, name: str) -> Any:
        return getattr(self._behind, name)

    def step(self, *args: Any, closure: Callable[[], Any] | None = None, **_: Any) -> Any:
        run = closure or next((arg for arg in args if callable(arg)), None)
        return run() if run else None

    def zero_grad(self, *_: Any, **__: Any) -> None:
        pass

    def train(self) -> None:
        pass

    def eval(self) -> None:
        pass


def _idle(found: Any) -> Any:
    if isinstance(found, list):
        return [_Idle(entry) for entry in found]
    return None if found is None else _Idle(found)


@contextmanager
def _idle_optimization(pl_module: LightningModule) -> Iterator[None]:
    """Let a ``training_step`` that optimizes by itself compute all it likes, and change nothing."""
    parameters = list(pl_module.parameters())
    before = [(parameter.grad, parameter.requires_grad) for parameter in parameters]
    optimizers, schedulers = pl_module.optimizers, pl_module.lr_schedulers
    own = vars(pl_module)
    inert: dict[str, Any] = {
        "optimizers": lambda *args, **kwargs: _idle(optimizers(*args, **kwargs)),
        "lr_schedulers": lambda: _idle(schedulers()),
        "manual_backward": lambda *_, **__: None,
        "clip_gradients": lambda *_, **__: None,
    }
    former = {name: own[name] for name in inert if name in own}
    for parameter in parameters:
        parameter.grad = None  # a plain ``loss.backward()`` would add to them
    own.update(inert)
    try:
        yield
    finally:
        for name in inert:
            del own[name]
        own.update(former)
        for parameter, (gradient, learns) in zip(parameters, before, strict=True):
            parameter.grad, parameter.requires_grad = gradient, learns
