"""One training of a study: built from its seed, trained, validated, measured; test data are left alone."""

from __future__ import annotations

import io
import math
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ModelSummary, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_tricks.core import checks
from lightning_tricks.study.cost import Cost
from lightning_tricks.study.quiet import no_words, trained_quietly

__all__ = [
    "Build",
    "MeasuredTrial",
    "SameOrder",
    "Setup",
    "StudyError",
    "flat",
    "rehearse",
    "run_trial",
    "seeded_setup",
    "trial_folder",
    "trial_trainer",
]

_SILENT = (ProgressBar, ModelSummary)


@dataclass(frozen=True)
class Setup:
    """What a trial trains.

    Attributes:
        module: The module, new.
        data: A data module; or loaders, of training and of validation.
        trainer: Settings of the Trainer.
    """

    module: LightningModule
    data: LightningDataModule | tuple[Any, Any]
    trainer: dict[str, Any]

    @classmethod
    def of(cls, given: Any) -> Setup:
        """Return what a factory gave, checked.

        Raises:
            TypeError: If it is no module, data and settings.
        """
        if isinstance(given, Setup):
            return given
        if not isinstance(given, tuple) or len(given) != 3:
            raise TypeError(f"build must return (module, data, Trainer settings), got {given!r:.80}")
        module, data, trainer = given
        if not isinstance(module, LightningModule):
            raise TypeError(f"build must return a LightningModule first, got {module!r:.80}")
        is_loaders = isinstance(data, tuple | list) and len(data) == 2
        if not (isinstance(data, LightningDataModule) or is_loaders):
            raise TypeError(
                "build must return a LightningDataModule or (training loader, validation loader) second, got "
                f"{data!r:.80}"
            )
        if not isinstance(trainer, dict):
            raise TypeError(f"build must return a dict of Trainer settings third, got {trainer!r:.80}")
        return cls(module, tuple(data) if is_loaders else data, trainer)


Build = Callable[[int], "Setup | tuple[LightningModule, Any, dict[str, Any]]"]
"""Makes what a trial trains from its seed, which has been set."""


class StudyError(ValueError):
    """No trial of the study can be measured; not the fault of one."""


@dataclass(frozen=True)
class MeasuredTrial:
    """What one trial gave.

    Attributes:
        value: The metric of the weights that training left, on validation data.
        step_ms: Median time of a training step, in milliseconds; NaN without two in a row.
        memory_mib: Peak of memory while training, in MiB; NaN where it cannot be told. See
            :class:`~lightning_tricks.study.cost.Cost`.
        device: That it ran on.
        seconds: The whole trial.
    """

    value: float
    step_ms: float
    memory_mib: float
    device: str
    seconds: float

    def plain(self) -> dict[str, Any]:
        """Return it without what could not be measured, which not every storage can hold."""
        return {key: value for key, value in vars(self).items() if value == value}


def run_trial(
    build: Build,
    techniques: Sequence[Callback],
    *,
    seed: int,
    metric: str,
    logger: Logger | None = None,
) -> MeasuredTrial:
    """Train what ``build`` gives with ``techniques``, and measure.

    Random states are set before ``build`` and at each epoch's start, so that trials of one seed begin with
    the same weights and see the same data in the same order, whatever techniques draw in between.

    Args:
        build: Of the module, the data and the Trainer's settings.
        techniques: Callbacks, new ones.
        seed: Of everything.
        metric: Logged in validation, or else in training.
        logger: Gets what is logged.

    Raises:
        StudyError: If there is no such metric, or the Trainer's processes are several.
        ValueError: If its value is not finite.
    """
    begin, cost = time.perf_counter(), Cost()
    value = _train(build, techniques, {"logger": logger}, seed=seed, metric=metric, cost=cost)
    if not math.isfinite(value):
        raise ValueError(f"{metric} was {value} at the end of training")
    return MeasuredTrial(value, cost.step_ms, cost.memory_mib, cost.device, time.perf_counter() - begin)


def rehearse(build: Build, techniques: Sequence[Callback], *, seed: int, metric: str) -> None:
    """Train for two steps and validate, for what the first trial of a process takes longer and more memory.

    Raises:
        StudyError: If nothing logs the metric, or the Trainer's processes are several.
    """
    with warnings.catch_warnings():
        # What techniques say of moments that so short a run does not reach.
        warnings.filterwarnings("ignore", ".*: it has no effect")
        _train(build, techniques, _SHORT, seed=seed, metric=metric, cost=Cost())


_SHORT = {
    "logger": None,
    "limit_train_batches": 2,
    "limit_val_batches": 1,
    "val_check_interval": None,
    "check_val_every_n_epoch": 1,
    "overfit_batches": 0.0,
    "max_epochs": 1,
    "min_epochs": None,
    "max_steps": -1,
    "min_steps": None,
}


def _train(
    build: Build,
    techniques: Sequence[Callback],
    changed: Mapping[str, Any],
    *,
    seed: int,
    metric: str,
    cost: Cost,
) -> float:
    """Train and return the metric; ``changed`` are settings of the Trainer in the place of those given."""
    with no_words(), isolate_rng(), trial_folder() as folder:
        setup = seeded_setup(build, seed)
        trainer = trial_trainer({**setup.trainer, **changed}, folder, [cost], [*techniques, SameOrder(seed)])
        if trainer.world_size > 1:
            raise StudyError(
                f"the Trainer's devices must be 1 in a study, got {trainer.world_size} processes: several "
                "trials may run at once instead, each with a device of its own"
            )
        cost.begin(trainer.strategy.root_device)
        with trained_quietly(trainer):
            if isinstance(setup.data, LightningDataModule):
                trainer.fit(setup.module, datamodule=setup.data)
            else:
                trainer.fit(setup.module, *setup.data)
        cost.end()
        return _value(trainer, setup, metric)


def seeded_setup(build: Build, seed: int) -> Setup:
    """Return what ``build`` gives with random states set to ``seed``.

    Raises:
        TypeError: If that is no module, data and settings.
    """
    seed_everything(seed, workers=True, verbose=False)
    with redirect_stdout(io.StringIO()):
        return Setup.of(build(seed))


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the plain values in nested mappings by dotted names; lists as text, other objects not at all.

    Example:
        >>> flat({"trainer": {"max_epochs": 3, "logger": object()}, "sizes": [1, 2]})
        {'trainer.max_epochs': 3, 'sizes': '[1, 2]'}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{name}."))
        elif isinstance(value, list | tuple) and " at 0x" not in repr(value):
            found[f"{prefix}{name}"] = repr(value)
        elif isinstance(value, str | int | float):
            found[f"{prefix}{name}"] = value
    return found


@contextmanager
def trial_folder() -> Iterator[Path]:
    """Give a folder of a trial's own, which is gone after it."""
    folder = Path(tempfile.mkdtemp(prefix="trial-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def trial_trainer(
    settings: Mapping[str, Any], folder: Path, first: list[Callback], last: list[Callback]
) -> Trainer:
    """Return the Trainer of a trial: it says nothing, and writes nothing outside ``folder``."""
    given = settings.get("callbacks") or []
    own = [each for each in (given if isinstance(given, list) else [given]) if not isinstance(each, _SILENT)]
    for each in own:
        if isinstance(each, ModelCheckpoint):
            each.dirpath = str(folder / "checkpoints")
    forced = {
        "callbacks": [*first, *own, *last],
        # One that takes everything, for modules and callbacks that ask for the logger.
        "logger": settings.get("logger") or DummyLogger(),
        "default_root_dir": str(folder),
        "enable_checkpointing": any(isinstance(each, Checkpoint) for each in own),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(**{**settings, **forced})


def _value(trainer: Trainer, setup: Setup, metric: str) -> float:
    """Return the metric of the weights that the module holds now; one of training only, as it was last."""
    logged = dict(trainer.callback_metrics)
    if trainer.enable_validation:
        data = setup.data
        with trained_quietly(trainer):
            if isinstance(data, LightningDataModule):
                trainer.validate(setup.module, datamodule=data, verbose=False)
            else:
                trainer.validate(setup.module, data[1], verbose=False)
    return _known(metric, {**logged, **trainer.callback_metrics})


def _known(metric: str, logged: Mapping[str, Any]) -> float:
    try:
        return float(logged[checks.one_of("metric", metric, sorted(logged))])
    except ValueError as error:
        raise StudyError(str(error)) from None


class SameOrder(Callback):
    """Sets random states where the Trainer is about to ask loaders for their order."""

    def __init__(self, seed: int) -> None:
        """Take the seed of the whole run."""
        self._seed = seed

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._set(0)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._set(trainer.current_epoch + 1)

    def _set(self, epoch: int) -> None:
        seed_everything((self._seed + 7919 * epoch) % 2**32, workers=True, verbose=False)
