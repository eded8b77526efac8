"""What ``ExactResume`` tells: that a run cannot be resumed exactly, and why a resumed one is not equal."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint

import lightning_tricks as lt
from lightning_tricks.lifecycle.seal import sealed, unsealed
from tests.lifecycle.resumed_runs import Learner, Own, seed, shuffled
from tests.toys import StopAfter, StopError, trainer

BEFORE = "ExactResume: the train loader .DataLoader. has no state_dict.*StatefulDataLoader.*ends of epochs"
UNEQUAL = "ExactResume: the resumed run cannot equal the uninterrupted one: .*"


class Hooked(Learner):
    """Does something after each batch and each validation."""

    def on_train_batch_end(self, *_: Any) -> None:
        pass

    def on_validation_end(self) -> None:
        pass


class Silent(Learner):
    """Logs nothing."""

    def log(self, *_: Any, **__: Any) -> None:
        pass


class SavesAt(Callback):
    """Saves a checkpoint at the n-th call of a hook and breaks off."""

    def __init__(self, hook: str, count: int, path: Path) -> None:
        self.count, self.path = count, path
        setattr(self, hook, self._save)

    def _save(self, runner: Trainer, *_: Any) -> None:
        self.count -= 1
        if not self.count:
            runner.save_checkpoint(self.path)
            raise StopError


def fit(
    *callbacks: Callback,
    data: Callable[[], Any] = Own,
    module: Callable[[], Learner] = Learner,
    ckpt_path: Path | None = None,
    **settings: Any,
) -> list[str]:
    """Train with validation and return the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runner = trainer(*callbacks, max_epochs=2, **settings)
        with suppress(StopError):
            runner.fit(module(), data(), Own(2), ckpt_path=ckpt_path)
    return [str(each.message) for each in caught if "ExactResume" in str(each.message)]


def stopped(path: Path, hook: str, count: int, **options: Any) -> Path:
    """Return a checkpoint that was written there."""
    fit(lt.ExactResume(), SavesAt(hook, count, path / "a.ckpt"), **options)
    return path / "a.ckpt"


def plain() -> Any:
    return shuffled(20)


@pytest.mark.parametrize(
    ("writes", "settings"),
    [
        (lambda: ModelCheckpoint(every_n_train_steps=2), {}),
        (lambda: ModelCheckpoint(train_time_interval=timedelta(hours=1)), {}),
        (ModelCheckpoint, {"val_check_interval": 0.5}),
        (ModelCheckpoint, {"val_check_interval": 7, "check_val_every_n_epoch": None}),
        (lambda: OnExceptionCheckpoint("."), {}),
        (Callback, {"plugins": [SLURMEnvironment(auto_requeue=False)]}),
    ],
)
def test_it_says_once_and_at_once_that_a_loader_cannot_go_on_within_an_epoch(
    writes: Callable[[], Callback], settings: dict[str, Any], tmp_path: Path
) -> None:
    settings |= {"enable_checkpointing": True, "default_root_dir": tmp_path}
    (told,) = fit(lt.ExactResume(), writes(), data=plain, **settings)
    assert re.match(BEFORE, told)
    assert fit(lt.ExactResume(), writes(), **settings) == []


@pytest.mark.parametrize("writes", [[], [ModelCheckpoint], [lambda: ModelCheckpoint(save_last=True)]])
def test_nothing_is_said_where_checkpoints_are_written_at_the_ends_of_epochs(
    writes: list[Callable[[], Callback]], tmp_path: Path
) -> None:
    settings = {"enable_checkpointing": bool(writes), "default_root_dir": tmp_path}
    assert fit(lt.ExactResume(), *[each() for each in writes], data=plain, **settings) == []


@pytest.mark.parametrize("trial", [{"fast_dev_run": 2}, {"barebones": True}], ids=str)
def test_a_trial_run_is_left_in_peace(trial: dict[str, Any]) -> None:
    settings = {} if "fast_dev_run" in trial else {"log_every_n_steps": 0, "num_sanity_val_steps": 0}
    assert fit(lt.ExactResume(), data=plain, module=Silent, **trial, **settings) == []


def test_a_resume_within_an_epoch_says_that_its_data_begin_again(tmp_path: Path) -> None:
    saved = stopped(tmp_path, "on_train_batch_end", 7, data=plain)
    (told,) = fit(lt.ExactResume(), data=plain, ckpt_path=saved)
    assert re.match(UNEQUAL + "the data of the epoch begin again.*DataLoader.*no state_dict", told)


@pytest.mark.parametrize(
    ("hook", "count", "options", "reason"),
    [
        ("on_train_batch_start", 7, {}, "not written at the end of a batch, a validation or an epoch"),
        ("on_before_optimizer_step", 7, {}, "not written at the end of a batch"),
        ("on_train_epoch_start", 2, {}, "not written at the end of a batch"),
        ("on_validation_start", 1, {}, "not written at the end of a batch"),
        ("on_validation_batch_end", 1, {}, "not written at the end of a batch"),
        ("on_validation_batch_end", 2, {}, "not written at the end of a batch"),
        (
            "on_train_batch_end",
            3,
            {"accumulate_grad_batches": 2},
            "within an accumulation and holds no gradients",
        ),
        ("on_train_batch_end", 3, {"module": Hooked}, "before the module's own on_train_batch_end"),
        ("on_validation_end", 1, {"module": Hooked}, "before the module's own on_validation_end"),
    ],
)
def test_a_resumed_run_that_cannot_be_equal_says_why(
    hook: str, count: int, options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    saved = stopped(tmp_path, hook, count, **options)
    (told,) = fit(lt.ExactResume(), ckpt_path=saved, **options)
    assert re.match(UNEQUAL + reason, told)


@pytest.mark.parametrize(("hook", "count"), [("on_train_batch_end", 4), ("on_validation_end", 1)])
def test_otherwise_it_says_nothing(hook: str, count: int, tmp_path: Path, capsys: Any) -> None:
    saved = stopped(tmp_path, hook, count)
    assert fit(lt.ExactResume(), ckpt_path=saved) == []
    assert "ExactResume" not in capsys.readouterr().out


def test_a_checkpoint_written_without_it_gets_one_line(tmp_path: Path, capsys: Any) -> None:
    fit(StopAfter(4, tmp_path / "a.ckpt"))
    assert fit(lt.ExactResume(), ckpt_path=tmp_path / "a.ckpt") == []
    lines = [line for line in capsys.readouterr().out.splitlines() if "ExactResume" in line]
    assert lines == ["ExactResume: the checkpoint was written without it, so random states are new"]


def altered(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Return a checkpoint whose state of ``ExactResume`` was changed."""
    saved = stopped(path, "on_train_batch_end", 4)
    checkpoint = torch.load(saved, weights_only=True)
    entry = unsealed(checkpoint, "ExactResume")
    change(entry["state"])
    checkpoint["callbacks"]["ExactResume"] = sealed(entry)
    torch.save(checkpoint, saved)
    return saved


def test_another_number_of_processes_is_told_and_random_states_start_anew(tmp_path: Path) -> None:
    def resumed(saved: Path, value: int) -> tuple[list[str], bytes]:
        module = Learner()
        seed(value)
        return fit(lt.ExactResume(), ckpt_path=saved, module=lambda: module), bytes(torch.get_rng_state())

    one = stopped(tmp_path, "on_train_batch_end", 4)
    assert resumed(one, 1) == resumed(one, 2)
    two = altered(tmp_path, lambda state: state["processes"].extend(state["processes"]))
    (told,), drawn = resumed(two, 1)
    assert re.match("ExactResume: the checkpoint was written by 2 processes, not 1, so random states", told)
    assert drawn != resumed(two, 2)[1]


def test_another_number_of_cuda_devices_is_told(tmp_path: Path) -> None:
    def change(state: dict[str, Any]) -> None:
        state["processes"][0]["random"]["cuda"] = [torch.get_rng_state()] * 97

    (told,) = fit(lt.ExactResume(), ckpt_path=altered(tmp_path, change))
    assert re.match(UNEQUAL + f"written with 97 CUDA devices in sight, not {torch.cuda.device_count()}", told)
