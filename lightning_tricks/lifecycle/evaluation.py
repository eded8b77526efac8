"""One more pass over the data at the end of a run, of which nothing is seen afterwards.

No callback and no logger takes part. Counters, random states, logged metrics, module modes and the places
of data loaders are afterwards what they were, also if the pass breaks off.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.loops.progress import _BatchProgress
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from torchmetrics import Metric

from lightning_tricks.core import checks
from lightning_tricks.lifecycle.notice import callbacks_of
from lightning_tricks.lifecycle.randomness import generators_of

__all__ = [
    "MissingMetricError",
    "Objective",
    "kept_metric",
    "kept_place",
    "logged_by_module",
    "logged_by_validation",
    "modes_without_evaluation",
    "objective_of",
    "replaced",
    "undisturbed",
    "validate_again",
]


class MissingMetricError(ValueError):
    """A validation did not log the metric that a run is measured by."""


class Objective(NamedTuple):
    """A validation metric, and what to multiply it by so that higher is better."""

    monitor: str
    sign: float

    def score(self, metrics: Mapping[str, float], *, others: Collection[str] = ()) -> float:
        """Return the metric among ``metrics``, higher is better.

        Args:
            metrics: What the module logged.
            others: Names of what callbacks logged.

        Raises:
            MissingMetricError: If it is not among ``metrics``; says why, or names the nearest.
        """
        if self.monitor in metrics:
            return self.sign * metrics[self.monitor]
        if self.monitor in others:
            raise MissingMetricError(
                f"monitor must be logged by the module in validation, got {self.monitor!r}, which a callback "
                "logs: callbacks take no part in the passes at the end of fit, so log it in the module"
            )
        known = ", ".join(map(repr, metrics)) or "nothing"
        close = checks.nearest(self.monitor, metrics, count=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise MissingMetricError(
            f"monitor must be logged by validation, got {self.monitor!r}; it logs {known}{meant}"
        )

    def metric(self, score: float) -> float:
        """Return the metric that has ``score``."""
        return self.sign * score


def objective_of(trainer: Trainer, monitor: str | None, mode: str | None, *, otherwise: str) -> Objective:
    """Return what a run is to be measured by, in ``on_fit_start``.

    Args:
        trainer: The Trainer of the run.
        monitor: Name of the metric; ``None`` for that of the first ModelCheckpoint that has one.
        mode: ``"min"`` or ``"max"``; ``None`` for that of the ModelCheckpoint that monitors the same.
        otherwise: What else the user can do if there is none, for errors.

    Raises:
        ValueError: If metric or mode are unknown, or the run has no validation.
    """
    savers: list[Any] = [saver for saver in trainer.checkpoint_callbacks if getattr(saver, "monitor", None)]
    monitor = monitor or next((saver.monitor for saver in savers), None)
    if monitor is None:
        raise ValueError(
            "monitor must name a validation metric, got None, and no ModelCheckpoint monitors one: give "
            f"monitor and mode, or {otherwise}"
        )
    mode = mode or next((saver.mode for saver in savers if saver.monitor == monitor), None)
    if mode is None:
        raise ValueError(f"mode must be 'min' or 'max' for monitor {monitor!r}, got None")
    if not trainer.enable_validation:
        raise ValueError(
            f"monitor must be measured by validation, got {monitor!r}, but the run has none: give it a "
            f"validation loop, or {otherwise}"
        )
    return Objective(monitor, -1.0 if mode == "min" else 1.0)


def validate_again(trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
    """Run the validation loop on the module as it is and return the metrics that it logged.

    Two such calls in a row see the same data in the same order with the same random numbers.

    Raises:
        RuntimeError: If the run has no validation.
    """
    if not trainer.enable_validation:
        raise RuntimeError("there must be a validation loop to evaluate with, but the run has none")
    with undisturbed(trainer, pl_module):
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        return _agreed(trainer, trainer.callback_metrics)


def logged_by_validation(trainer: Trainer) -> dict[str, float]:
    """Return the metrics of the validation that just ended; to be called in ``on_validation_end``.

    ``trainer.callback_metrics`` holds those of training and of earlier validations besides.
    """
    return _agreed(trainer, {name: value for _, name, value in _logged(trainer)})


def logged_by_module(trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
    """Return those that were logged in hooks of the module, as :func:`validate_again` would find them.

    A callback that logs in a hook which the module has too cannot be told from the module.
    """
    own = {name: value for hook, name, value in _logged(trainer) if is_overridden(hook, pl_module)}
    return _agreed(trainer, own)


def _logged(trainer: Trainer) -> Iterator[tuple[str, str, Any]]:
    """Yield hook, name and value of each metric of the validation that just ended."""
    for key, value in trainer.fit_loop.epoch_loop.val_loop._results.items():
        # By itself, because a collection shows the metrics of one loader at a time, and hides the hooks.
        single = _ResultCollection(training=False)
        single[key], single.dataloader_idx = value, value.meta.dataloader_idx
        hook = value.meta.fx.partition(".")[0]  # the index of the loader follows
        for name, metric in single.metrics(on_step=False)["callback"].items():
            yield hook, name, metric


def _agreed(trainer: Trainer, metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return ``metrics`` as numbers that are the same on all processes: those of the first."""
    return trainer.strategy.broadcast({name: float(value) for name, value in metrics.items()})


def modes_without_evaluation(trainer: Trainer) -> dict[str, bool]:
    """Return whether modules, by name, train when the evaluation under way is over; empty if none is."""
    modes = getattr(trainer._active_loop, "_module_mode", None)
    return {} if modes is None else dict(modes.mode)


@contextmanager
def undisturbed(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Detach callbacks and loggers, and take everything but weights and buffers back at the end."""
    loop, connector = trainer.fit_loop.epoch_loop, trainer._logger_connector
    validation = loop.val_loop
    reload = {} if validation._combined_loader is None else {"_last_val_dl_reload_epoch": math.inf}
    with ExitStack() as stack:
        # First in, last out: what is put back after it may itself draw random numbers.
        stack.callback(_set_rng_states, _collect_rng_states())
        for owner, values in (
            (
                trainer,
                {
                    "callbacks": _silent_bars(trainer, stack),
                    "loggers": [DummyLogger() for _ in trainer.loggers],
                },
            ),
            (trainer.state, {"stage": trainer.state.stage}),
            (connector, {"_progress_bar_metrics": {}, "_logged_metrics": {}, "_callback_metrics": {}}),
            (connector, {"_first_loop_iter": None, "_current_fx": None}),
            (pl_module, {"_current_fx_name": pl_module._current_fx_name}),
            (loop, {"_results": _ResultCollection(training=True)}),
            (validation, {"_results": _ResultCollection(training=False)}),
            (validation, {"batch_progress": _BatchProgress(), "_restarting": False, "verbose": False}),
            (validation, {"_seen_batches_per_dataloader": defaultdict(int)}),
            # Another validation may be about to end, which gives modules back the modes that it noted.
            (validation, {"_module_mode": type(validation._module_mode)()}),
            (validation, reload),  # the loader of the last validation is used again
            (trainer, {"_last_val_time": getattr(trainer, "_last_val_time", None)}),
        ):
            stack.enter_context(replaced(owner, values))
        for module in pl_module.modules():
            stack.enter_context(replaced(module, {"training": module.training}))
            if isinstance(module, Metric):
                stack.enter_context(kept_metric(module))
                module.reset()  # that of a validation that is about to end still counts
        for loader in (trainer.fit_loop._combined_loader, validation._combined_loader):
            if loader is not None:
                stack.enter_context(kept_place(loader))
        yield


def _silent_bars(trainer: Trainer, stack: ExitStack) -> list[Callback]:
    """Return the progress bars, disabled until ``stack`` closes.

    A bar may draw itself from a thread, and looks for itself among the callbacks when it does.
    """
    bars = [callback for callback in callbacks_of(trainer) if isinstance(callback, ProgressBar)]
    for bar in bars:
        if getattr(bar, "is_enabled", False):
            bar.disable()
            stack.callback(bar.enable)
    return list(bars)


@contextmanager
def replaced(owner: object, values: Mapping[str, Any]) -> Iterator[None]:
    """Give ``owner`` other ``values`` of attributes, within this."""
    former = {name: getattr(owner, name) for name in values if hasattr(owner, name)}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in former.items():
            setattr(owner, name, value)


@contextmanager
def kept_metric(metric: Metric) -> Iterator[None]:
    """Let ``metric`` forget what it counts within this."""
    values = {"_update_count": metric._update_count, "_computed": metric._computed}
    with replaced(metric, {**metric._copy_state_dict(), **values}):
        yield


@contextmanager
def kept_place(loader: CombinedLoader) -> Iterator[None]:
    """Let stateful loaders and loaders with generators of their own go on from where they are."""
    generators = [generator for part in loader.flattened for generator in generators_of(part)]
    states = [generator.get_state() for generator in generators]
    places = loader._state_dicts()  # a loader that has not begun may draw its order for it
    try:
        yield
    finally:
        loader._load_state_dicts(places)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
