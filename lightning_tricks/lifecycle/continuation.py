"""Where in its loops a run is, and how a resumed one goes on from exactly there.

Lightning (2.6) goes on from a checkpoint only nearly as the run that wrote it went on: a resumed run draws
random numbers for its data at another time, leaves out what was left of a batch or an epoch, be it a
validation, loses a batch of a loader without length, and under ``max_steps`` ends an epoch twice.
"""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any, Literal

import torch
from lightning.fabric.utilities.types import _Stateful
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loops.evaluation_loop import RestartStage
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_tricks.lifecycle.randomness import generators_of, random_states, set_random_states
from lightning_tricks.lifecycle.running_metrics import restore_metrics, saved_metrics

__all__ = [
    "Continuation",
    "Lookahead",
    "Moment",
    "count_as_done",
    "moment_of",
    "obstacles",
    "position",
    "stateless",
    "train_loaders",
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
        "it was not written at the end of a batch, a validation or an epoch": moment == "between",
        f"it was written before the module's own {hook}, which is left out": (
            hook is not None and is_overridden(hook, pl_module)
        ),
        "it was written within an accumulation, and gradients are in no checkpoint": (
            _data_left(trainer) and pl_module.automatic_optimization and loop._should_accumulate()
        ),
        f"the data of the epoch begin again, as the loader ({stateless(trainer)}) has no state_dict": (
            bool(stateless(trainer)) and _data_left(trainer)
        ),
        "the mean of a metric that is logged with sync_dist_group begins again": any(
            mean.meta.sync.group is not None and not mean.has_reset for mean in loop._results.values()
        ),
        f"the random state of {device} is not saved": device not in ("cpu", "cuda"),
    }
    return [text for text, holds in found.items() if holds]


def position(trainer: Trainer, pl_module: LightningModule, lookahead: Lookahead | None) -> dict[str, Any]:
    """Return where this process is, as tensors and plain values: randomness, data, metrics."""
    fit, validation = trainer.fit_loop, trainer.fit_loop.epoch_loop.val_loop
    data = None
    if _data_left(trainer):
        data = lookahead.noted if lookahead is not None else {"loaders": _states(trainer)}
    return {
        "random": random_states(),
        "generators": [[g.get_state() for g in group] for group in _generators(trainer)],
        "data": data,
        "loaded": [fit._last_train_dl_reload_epoch, validation._last_val_dl_reload_epoch],
        "kept_workers": [_keeps_workers(loader) for loader in _validation_loaders(trainer)],
        "metrics": saved_metrics(trainer, pl_module),
    }


def count_as_done(fit_loop: dict[str, Any], moment: Moment) -> None:
    """Change a saved fit loop as if its batch or epoch were over; a Continuation makes up what was left."""
    names = {"batch end": "epoch_loop.batch_progress", "epoch end": "epoch_progress"}
    progress = fit_loop.get(names.get(moment, ""))
    for counts in (progress or {}).values():
        if isinstance(counts, dict):
            counts["completed"] = counts["processed"]
    # Each process has its own states of loaders, and Lightning loads those of the first into all.
    fit_loop["state_dict"].pop("combined_loader", None)


def _validation_loaders(trainer: Trainer) -> list[Any]:
    combined = trainer.fit_loop.epoch_loop.val_loop._combined_loader
    return [] if combined is None else combined.flattened


def _states(trainer: Trainer) -> list[dict[str, Any]]:
    return [loader.state_dict() for loader in train_loaders(trainer) if isinstance(loader, _Stateful)]


def _generators(trainer: Trainer) -> list[list[torch.Generator]]:
    groups = (train_loaders(trainer), _validation_loaders(trainer))
    return [[g for loader in loaders for g in generators_of(loader)] for loaders in groups]


def _keeps_workers(loader: Any) -> bool:
    return getattr(loader, "persistent_workers", False) and loader._iterator is not None


class Lookahead:
    """Notes where loaders without length are before each fetch, for Lightning reads them one batch ahead.

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


class Continuation:
    """Lets a resumed run go on as the run that wrote the checkpoint went on.

    Stands in the place of the fit loop's ``on_advance_start``, which comes after ``on_train_start`` of all
    callbacks and the module, until it was called once or is removed.
    """

    def __init__(
        self,
        trainer: Trainer,
        moment: Moment,
        position: dict[str, Any],
        lookahead: Lookahead | None,
    ) -> None:
        """Take the place."""
        self._trainer, self._moment, self._position = trainer, moment, position
        self._fit: Any = trainer.fit_loop
        self._loop, self._lookahead = self._fit.epoch_loop, lookahead
        self._fit.__dict__["on_advance_start"] = self

    def remove(self) -> None:
        """Give the place back."""
        self._fit.__dict__.pop("on_advance_start", None)

    def __call__(self) -> None:
        self.remove()
        connector = self._trainer._logger_connector
        self._prepare_validation()
        restore_metrics(self._trainer, self._trainer.lightning_module, self._position["metrics"])
        if self._moment in ("epoch over", "epoch end"):
            if self._moment == "epoch end":
                self._make_up_epoch()
            self._begin_epoch()
            self._restore_randomness()
            type(self._fit).on_advance_start(self._fit)
        else:
            type(self._fit).on_advance_start(self._fit)
            connector._first_loop_iter = False  # or the first value that is logged begins its mean again
            self._find_data()
            self._restore_randomness()
            if self._moment != "between":
                self._make_up_batch()
            self._fit._restarting = False  # or schedulers that watch a metric miss the end of this epoch

    def end_epoch(self) -> None:
        """Let later epochs begin as ever, which Lightning misses where no batch was left of the first."""
        self._loop.on_iteration_done()

    def _prepare_validation(self) -> None:
        """Load validation data that were loaded, and start the workers that were kept, for both may draw."""
        kept, loop = self._position["kept_workers"], self._loop.val_loop
        if kept:
            self._trainer.validating = True
            loop.setup_data()
            self._trainer.training = True
        for loader, started in zip(_validation_loaders(self._trainer), kept, strict=False):
            if started:
                iter(loader)

    def _restore_randomness(self) -> None:
        for group, states in zip(_generators(self._trainer), self._position["generators"], strict=True):
            for generator, state in zip(group, states, strict=False):
                generator.set_state(state)
        train, validation = self._position["loaded"]
        self._fit._last_train_dl_reload_epoch = train
        if validation >= 0:  # below, they were not loaded yet
            self._loop.val_loop._last_val_dl_reload_epoch = validation
        set_random_states(self._position["random"])

    def _make_up_epoch(self) -> None:
        """Do what Lightning does after ``on_train_epoch_end``."""
        connector, epoch = self._trainer._logger_connector, self._fit.epoch_progress.current
        epoch.completed -= 1  # what is logged now belongs to that epoch
        connector.epoch_end_reached()
        connector.on_epoch_end()
        if self._loop._num_ready_batches_reached():
            self._loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)
        self._loop._batches_that_stepped -= 1
        connector.update_train_epoch_metrics()
        self._loop._batches_that_stepped += 1
        epoch.completed += 1

    def _begin_epoch(self) -> None:
        """Let the epoch begin as any other, with an iterator of its own."""
        self._fit._restarting = self._loop.restarting = False
        self._fit._resuming_from_checkpoint = False
        self._fit.reset_restart_stage()
        self._loop.reset_restart_stage()

    def _find_data(self) -> None:
        """Let stateful loaders go on where they were; only now, because their order may hang on the epoch."""
        data = self._position["data"]
        if data is None or not data["loaders"]:
            return
        self._fit._combined_loader._load_state_dicts(data["loaders"])
        if self._lookahead is not None:
            self._lookahead.noted = data
        if "random" in data:
            # Between the iterator, whose making draws, and the batch that is fetched ahead with it.
            self._fit._data_fetcher._start_profiler = partial(set_random_states, data["random"])
        iter(self._fit._data_fetcher)

    def _make_up_batch(self) -> None:
        """Do what Lightning does after ``on_train_batch_end``, or after a validation that followed it."""
        connector, validation = self._trainer._logger_connector, self._loop.val_loop
        if self._moment == "batch end":
            connector.on_batch_end()
            connector.update_train_step_metrics()
        if not self._loop._should_check_val_fx(self._fit._data_fetcher):
            self._loop.on_advance_end(self._fit._data_fetcher)
            validation._has_run = True  # or an epoch whose data are over were trained a batch more
        elif self._moment == "batch end":
            # So Lightning validates before it trains, as it does where a validation broke off.
            validation._restart_stage = RestartStage.RESTARTED_MID_EVALUATION
            validation._restarting = False
