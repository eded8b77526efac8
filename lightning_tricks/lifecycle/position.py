"""Where a process is in its run: in the loops, in the data, in its random numbers and metrics."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Literal

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.types import _Stateful
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_tricks.lifecycle.randomness import generators_of, random_states
from lightning_tricks.lifecycle.running_metrics import saved_metrics

__all__ = [
    "Moment",
    "ReadAhead",
    "given_generators",
    "moment_of",
    "obstacles",
    "position",
    "reads_ahead",
    "stateless",
    "train_loaders",
    "validation_loaders",
    "writes_within_epochs",
]

Moment = Literal["epoch over", "epoch end", "batch end", "validation end", "between"]


def moment_of(trainer: Trainer) -> Moment:
    """Return in which hook the loops of ``trainer`` are, if it is one that a run can go on from.

    Returns:
        ``"epoch over"`` before an epoch begins; ``"epoch end"``, ``"batch end"`` and ``"validation end"`` in
        those hooks of callbacks; ``"between"`` anywhere else.
    """
    loop = trainer.fit_loop.epoch_loop
    epoch: Any = trainer.fit_loop.epoch_progress.current
    batch: Any = loop.batch_progress.current
    if epoch.processed == epoch.ready:
        return "epoch over" if epoch.completed == epoch.processed else "epoch end"
    if epoch.started == epoch.ready and batch.processed == batch.ready:
        if batch.completed < batch.processed:
            return "batch end"
        validation = loop.val_loop.batch_progress
        whole = validation.is_last_batch and validation.current.completed == validation.current.ready
        if trainer.validating and whole:
            return "validation end"
    return "between"


def train_loaders(trainer: Trainer) -> list[Any]:
    """Return the loaders of the training data."""
    combined = trainer.fit_loop._combined_loader
    return [] if combined is None else combined.flattened


def stateless(trainer: Trainer) -> str:
    """Return the names of those that cannot go on within an epoch; "" if there is none."""
    loaders = train_loaders(trainer)
    return ", ".join(type(part).__name__ for part in loaders if not isinstance(part, _Stateful))


def writes_within_epochs(trainer: Trainer) -> bool:
    """Return whether a callback or a cluster may have a checkpoint written before an epoch is over."""
    every = None if trainer.check_val_every_n_epoch is None else trainer.val_check_batch
    validates = every is None or every < trainer.num_training_batches  # by time, or batches of all epochs
    return isinstance(trainer._accelerator_connector.cluster_environment, SLURMEnvironment) or any(
        not isinstance(each, ModelCheckpoint)
        or each._every_n_train_steps > 0
        or each._train_time_interval is not None
        or (validates and not each._save_on_train_epoch_end)
        for each in trainer.checkpoint_callbacks
    )


def reads_ahead(trainer: Trainer) -> bool:
    """Return whether Lightning reads loaders that can go on, but have no length, one batch ahead."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and fetcher.length is None and bool(_states(trainer))


def _data_left(trainer: Trainer) -> bool:
    """Return whether the epoch is within its data."""
    within = moment_of(trainer) not in ("epoch over", "epoch end")
    return within and not trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def obstacles(trainer: Trainer, pl_module: LightningModule) -> list[str]:
    """Return why a run that is resumed from a checkpoint written now cannot equal this one."""
    moment, loop = moment_of(trainer), trainer.fit_loop.epoch_loop
    device = trainer.strategy.root_device.type
    hook = {"batch end": "on_train_batch_end", "validation end": "on_validation_end"}.get(moment)
    found = {
        "the checkpoint was not written at the end of a batch, a validation or an epoch": (
            moment == "between"
        ),
        f"the checkpoint was written before the module's own {hook}, which is left out": (
            hook is not None and is_overridden(hook, pl_module)
        ),
        "the checkpoint was written within an accumulation and holds no gradients": (
            _data_left(trainer) and pl_module.automatic_optimization and loop._should_accumulate()
        ),
        f"the data of the epoch begin again, as the train loader ({stateless(trainer)}) has no state_dict": (
            bool(stateless(trainer)) and _data_left(trainer)
        ),
        "the mean of a metric that is logged with sync_dist_group begins again": any(
            mean.meta.sync.group is not None and not mean.has_reset for mean in loop._results.values()
        ),
        f"the random state of {device} is not saved": device not in ("cpu", "cuda"),
    }
    return [text for text, holds in found.items() if holds]


def position(trainer: Trainer, pl_module: LightningModule, read_ahead: ReadAhead | None) -> dict[str, Any]:
    """Return where this process is, as tensors and plain values: randomness, data, metrics."""
    fit, validation = trainer.fit_loop, trainer.fit_loop.epoch_loop.val_loop
    data = None
    if _data_left(trainer):
        data = read_ahead.noted if read_ahead is not None else {"loaders": _states(trainer)}
    return {
        "random": random_states(),
        "generators": [[g.get_state() for g in group] for group in given_generators(trainer)],
        "data": data,
        "loaded": [fit._last_train_dl_reload_epoch, validation._last_val_dl_reload_epoch],
        "kept_workers": [_keeps_workers(loader) for loader in validation_loaders(trainer)],
        "metrics": saved_metrics(trainer, pl_module),
    }


def validation_loaders(trainer: Trainer) -> list[Any]:
    """Return the loaders of the validation data, as far as they were loaded."""
    combined = trainer.fit_loop.epoch_loop.val_loop._combined_loader
    return [] if combined is None else combined.flattened


def _states(trainer: Trainer) -> list[dict[str, Any]]:
    return [loader.state_dict() for loader in train_loaders(trainer) if isinstance(loader, _Stateful)]


def given_generators(trainer: Trainer) -> list[list[torch.Generator]]:
    """Return the generators that train loaders and validation loaders were given."""
    groups = (train_loaders(trainer), validation_loaders(trainer))
    return [[g for loader in loaders for g in generators_of(loader)] for loaders in groups]


def _keeps_workers(loader: Any) -> bool:
    return getattr(loader, "persistent_workers", False) and loader._iterator is not None


class ReadAhead:
    """Notes where loaders are before each fetch, and so how to read ahead what they had read ahead.

    Stands in the place of the epoch loop's ``_on_before_fetch`` until it is removed.

    Attributes:
        noted: States of the loaders, and of the generators that a dataset may draw from.
    """

    def __init__(self, trainer: Trainer) -> None:
        """Take the place."""
        self.noted: dict[str, Any] = {"loaders": [], "random": random_states()}
        self._trainer = trainer
        self._loop: Any = trainer.fit_loop.epoch_loop
        self._loop.__dict__["_on_before_fetch"] = self

    def __call__(self) -> None:
        # A loader may give its live state away, which the fetch then changes.
        self.noted = {"loaders": deepcopy(_states(self._trainer)), "random": random_states()}
        type(self._loop)._on_before_fetch(self._loop)

    def remove(self) -> None:
        """Give the place back."""
        self._loop.__dict__.pop("_on_before_fetch", None)
