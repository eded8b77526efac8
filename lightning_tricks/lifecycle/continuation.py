"""How a resumed run goes on from exactly where its checkpoint was written.

Lightning (2.6) goes on only nearly as the run that wrote it went on: a resumed run draws random numbers for
its data at another time, leaves out what was left of a batch or an epoch, be it a validation, loses a batch
of a loader without length, and under ``max_steps`` ends an epoch twice.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loops.evaluation_loop import RestartStage

from lightning_tricks.lifecycle.position import Moment, ReadAhead, given_generators, validation_loaders
from lightning_tricks.lifecycle.randomness import set_random_states
from lightning_tricks.lifecycle.running_metrics import restore_metrics

__all__ = ["Continuation", "count_as_done"]


def count_as_done(fit_loop: dict[str, Any], moment: Moment) -> None:
    """Change a saved fit loop as if its batch or epoch were over; a Continuation makes up what was left."""
    names = {"batch end": "epoch_loop.batch_progress", "epoch end": "epoch_progress"}
    progress = fit_loop.get(names.get(moment, ""))
    for counts in (progress or {}).values():
        if isinstance(counts, dict):
            counts["completed"] = counts["processed"]
    # Each process has its own states of loaders, and Lightning loads those of the first into all.
    fit_loop["state_dict"].pop("combined_loader", None)


class Continuation:
    """Lets a resumed run go on as the run that wrote the checkpoint went on.

    Stands in the place of the fit loop's ``on_advance_start``, which comes after ``on_train_start`` of all
    callbacks and the module, until it was called once or is removed.
    """

    def __init__(
        self,
        trainer: Trainer,
        moment: Moment,
        place: dict[str, Any],
        read_ahead: ReadAhead | None,
    ) -> None:
        """Stand ready; ``place`` is a :func:`position` at ``moment``."""
        self._trainer, self._moment, self._place = trainer, moment, place
        self._fit: Any = trainer.fit_loop
        self._loop, self._read_ahead = self._fit.epoch_loop, read_ahead
        self._fit.__dict__["on_advance_start"] = self

    def remove(self) -> None:
        """Give the place back."""
        self._fit.__dict__.pop("on_advance_start", None)

    def __call__(self) -> None:
        self.remove()
        connector = self._trainer._logger_connector
        self._prepare_validation()
        restore_metrics(self._trainer, self._trainer.lightning_module, self._place["metrics"])
        if self._moment in ("epoch over", "epoch end"):
            if self._moment == "epoch end":
                self._make_up_epoch()
            self._begin_epoch()
            self._restore_draws()
            type(self._fit).on_advance_start(self._fit)
        else:
            type(self._fit).on_advance_start(self._fit)
            connector._first_loop_iter = False  # or the first value that is logged begins its mean again
            self._find_data()
            self._restore_draws()
            if self._moment != "between":
                self._make_up_batch()
            self._fit._restarting = False  # or schedulers that watch a metric miss the end of this epoch
        self._place = {}  # release memory

    def end_epoch(self) -> None:
        """Let later epochs begin as ever, which Lightning misses where no batch was left of the first."""
        self._loop.on_iteration_done()

    def _prepare_validation(self) -> None:
        """Load validation data that were loaded, and start the workers that were kept, for both may draw."""
        kept, loop = self._place["kept_workers"], self._loop.val_loop
        if kept:
            self._trainer.validating = True
            loop.setup_data()
            self._trainer.training = True
        for loader, started in zip(validation_loaders(self._trainer), kept, strict=False):
            if started:
                iter(loader)

    def _restore_draws(self) -> None:
        """Let random numbers, and loaders that are loaded anew now and then, come as they would have."""
        for group, states in zip(given_generators(self._trainer), self._place["generators"], strict=True):
            for generator, state in zip(group, states, strict=False):
                generator.set_state(state)
        train, validation = self._place["loaded"]
        self._fit._last_train_dl_reload_epoch = train
        if validation >= 0:  # below, they were not loaded yet
            self._loop.val_loop._last_val_dl_reload_epoch = validation
        set_random_states(self._place["random"])

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
        data = self._place["data"]
        if data is None or not data["loaders"]:
            return
        self._fit._combined_loader._load_state_dicts(data["loaders"])
        if self._read_ahead is not None:
            self._read_ahead.noted = data
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
