"""Training as ``fit`` would find it, in reach of an evaluation outside of ``fit``.

Such a run sets up neither the data of training nor optimizers. Here both come to be as Lightning makes them
for ``fit``, through its own connector, so that samplers, limits and checks are those of ``fit``; afterwards
the run is what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import partial
from io import StringIO
from typing import Any

import torch
from lightning.fabric.utilities.seed import _set_rng_states
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.core.optimizer import _init_optimizers_and_lr_schedulers
from lightning.pytorch.trainer.call import _call_lightning_datamodule_hook
from lightning.pytorch.trainer.connectors.data_connector import _DataLoaderSource, _request_dataloader
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from lightning.pytorch.utilities.combined_loader import CombinedLoader

from lightning_tricks.lifecycle.evaluation import kept_place
from lightning_tricks.lifecycle.keeping import kept_attributes, kept_generators
from lightning_tricks.lifecycle.randomness import collected_states
from lightning_tricks.lifecycle.strategies import check_parts

__all__ = ["OutOfReachError", "given_loaders", "training_in_reach"]


class OutOfReachError(ValueError):
    """An evaluation cannot look at training; says why, and what to do."""


def given_loaders(trainer: Trainer) -> Any:
    """Return the training loaders that were passed to ``fit`` as such; ``None`` if a module made them."""
    source = trainer.fit_loop._data_source
    return None if source.is_module() else source.instance


@contextmanager
def training_in_reach(trainer: Trainer, pl_module: LightningModule, *, given: Any = None) -> Iterator[None]:
    """Let an evaluation outside of ``fit`` look at training; take everything back after it.

    A datamodule is set up for ``fit``, and has the attributes that it had afterwards. A module is not: its
    ``setup`` may make layers. ``Trainer(sync_batchnorm=True)`` has no effect, as in evaluations.

    Args:
        trainer: The Trainer of the run, within the loop of its evaluation.
        pl_module: Its module.
        given: Training loaders to take instead of those that ``pl_module`` would make.

    Raises:
        OutOfReachError: If there is no training batch, or the strategy hides the weights.
    """
    loop, strategy = trainer.fit_loop, trainer.strategy
    source = _source(trainer, pl_module, given)
    with ExitStack() as stack:
        stack.callback(_set_rng_states, collected_states())
        # Tensors that are made in inference mode could not take part in a training step.
        stack.enter_context(torch.inference_mode(False))
        for owner in (trainer, trainer.state, loop, strategy):
            stack.enter_context(kept_attributes(owner))
        stack.enter_context(kept_generators(pl_module))
        trainer.state.fn, trainer.state.stage = TrainerFn.FITTING, RunningStage.TRAINING
        trainer.loggers = []  # or Lightning would compare how often they log with the length of an epoch
        loaders = _loaders(trainer, source, stack)
        stack.enter_context(kept_place(loaders))
        loop._data_source = _DataLoaderSource(loaders, source.name)
        _begin_epoch(trainer, stack)
        missed = _set_up_optimizers(trainer, pl_module)
        try:
            yield
        except BaseException as error:
            error.add_note("raised outside of fit, where no hook of training was called before" + missed)
            raise


def _source(trainer: Trainer, pl_module: LightningModule, given: Any) -> _DataLoaderSource:
    """Return where training loaders come from."""
    try:
        check_parts(trainer)
    except ValueError as error:
        raise OutOfReachError(str(error)) from error
    source = trainer.fit_loop._data_source
    if given is not None and source.instance is pl_module:
        return _DataLoaderSource(given, source.name)
    if not source.is_defined():
        raise OutOfReachError(
            f"there must be training data, but {_name(source.instance)} defines no {source.name}: define it, "
            "or pass a datamodule that does"
        )
    return source


def _loaders(trainer: Trainer, source: _DataLoaderSource, stack: ExitStack) -> CombinedLoader:
    """Return the loaders of ``source``, a datamodule set up for them until ``stack`` closes."""
    owner = source.instance
    if isinstance(owner, LightningDataModule):
        stack.enter_context(kept_attributes(owner))
        stack.enter_context(kept_generators(owner))
        setup = partial(_call_lightning_datamodule_hook, trainer, "setup", stage="fit")
        _everywhere(trainer, setup, f"setup('fit') of {_name(owner)}")
    found = _everywhere(trainer, partial(_request_dataloader, source), f"{source.name} of {_name(owner)}")
    return found if isinstance(found, CombinedLoader) else CombinedLoader(found, "max_size_cycle")


def _begin_epoch(trainer: Trainer, stack: ExitStack) -> None:
    """Let there be an epoch of training until ``stack`` closes."""
    loop = trainer.fit_loop
    if loop.max_epochs is None:
        loop.max_epochs = 1000 if trainer.max_steps == -1 else -1  # as ``fit`` does
    loop._combined_loader, loop.max_batches = None, 0
    loop.setup_data()
    if loop._data_fetcher is not None:
        stack.callback(loop._data_fetcher.teardown)
    if not loop.max_batches:
        raise OutOfReachError(
            "training must have a batch and a training_step, got none, with "
            f"limit_train_batches={trainer.limit_train_batches}: raise it, or give more data"
        )


def _everywhere(trainer: Trainer, make: Callable[[], Any], what: str) -> Any:
    """Return what ``make`` does, if it does so in all processes, of which else some would wait for others."""
    made, error = None, None
    try:
        made = make()
    except Exception as caught:
        error = caught
    if not trainer.strategy.reduce_boolean_decision(error is None):
        told = "an error in another process" if error is None else _told(error)
        raise OutOfReachError(f"{what} must work outside of fit, got {told}") from error
    return made


def _set_up_optimizers(trainer: Trainer, pl_module: LightningModule) -> str:
    """Let there be the optimizers of training; say why there are none, which only some steps miss."""
    strategy, missed = trainer.strategy, ""
    strategy.optimizers, strategy.lr_scheduler_configs = [], []
    try:
        with redirect_stdout(StringIO()):  # what is told of a training that is not to come
            strategy.optimizers, strategy.lr_scheduler_configs = _init_optimizers_and_lr_schedulers(pl_module)
    except Exception as error:
        missed = f", and there are no optimizers, because configure_optimizers raised {_told(error)}"
    return missed


def _name(owner: object) -> str:
    return type(owner).__name__


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
