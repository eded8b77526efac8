"""A run that is stopped anywhere and resumed equals the uninterrupted one: weights, data, draws, log."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader

import lightning_tricks as lt
from tests.contract.regimes import REGIMES
from tests.contract.test_laws import STOPS, fit, full_state
from tests.contract.test_together import five
from tests.lifecycle.resumed_runs import (
    BATCH,
    BATCHES,
    ENDS,
    FEW,
    Learner,
    Log,
    Manual,
    Own,
    OwnStream,
    Run,
    Samples,
    Stop,
    Stream,
    assert_exact,
    seed,
    shuffled,
)
from tests.toys import StopAfter, StopError, assert_equal, scaler_plugin, trainer, weights

# Shuffled validation data draw as well, so that one draw too many or too few shows.
pytestmark = pytest.mark.filterwarnings("ignore:Your `val_dataloader`'s sampler has shuffling enabled")
quietly = pytest.mark.filterwarnings("ignore:ExactResume. the train loader .* has no state_dict")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("stop", [*BATCHES, *ENDS], ids=str)
@pytest.mark.parametrize("data", [Own, OwnStream])
def test_a_loader_with_state_goes_on_from_every_batch(
    data: Callable[[], Any], stop: Stop, tmp_path: Path
) -> None:
    assert_exact(data, stop, tmp_path)


PLAIN = {
    "shuffled": lambda: shuffled(20),
    "a generator of its own": lambda: shuffled(20, generator=torch.Generator().manual_seed(4)),
    "no length": lambda: DataLoader(Stream(), batch_size=BATCH),
    "workers": lambda: shuffled(20, num_workers=2),
    "workers that are kept": lambda: shuffled(20, num_workers=1, persistent_workers=True),
}


@quietly
@pytest.mark.parametrize("stop", ENDS[1:3], ids=str)
@pytest.mark.parametrize("data", PLAIN.values(), ids=PLAIN)
def test_a_plain_loader_goes_on_where_an_epoch_has_no_data_left(
    data: Callable[[], Any], stop: Stop, tmp_path: Path
) -> None:
    assert_exact(data, stop, tmp_path)


@quietly
@pytest.mark.parametrize("stop", [BATCHES[4], ENDS[-1]], ids=str)
def test_validation_workers_that_are_kept_draw_once(stop: Stop, tmp_path: Path) -> None:
    kept = {"num_workers": 1, "persistent_workers": True}
    assert_exact(lambda: shuffled(20), stop, tmp_path, validation=lambda: shuffled(**kept))


SETTINGS: dict[str, dict[str, Any]] = {
    "a run counted in steps": {"max_steps": 15, "max_epochs": -1},
    "validation within epochs": {"val_check_interval": 2},
    "validation across epochs": {"val_check_interval": 3, "check_val_every_n_epoch": None},
    "short epochs": {"limit_train_batches": 4},
    "rare logs": {"log_every_n_steps": 3},
    "a sanity check": {"num_sanity_val_steps": 2},
    "loaders made anew": {"reload_dataloaders_every_n_epochs": 2},
    "a scheduler that watches training": {"module": lambda: Learner("loss/epoch")},
    "a scheduler that watches validation": {"module": lambda: Learner("val_loss/epoch")},
    "a scheduler that watches steps": {"module": lambda: Learner("loss_step/step")},
    "manual": {"module": Manual},
    "16-mixed": {"plugins": lambda: [scaler_plugin()]},
    "a validation generator": {"validation": lambda: shuffled(generator=torch.Generator().manual_seed(4))},
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("stop", FEW, ids=str)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_in_every_kind_of_run(settings: dict[str, Any], stop: Stop, tmp_path: Path) -> None:
    assert_exact(Own, stop, tmp_path, **settings)


@pytest.mark.parametrize("stop", [*BATCHES[3:5], *BATCHES[7:8], ENDS[-1]], ids=str)
@pytest.mark.parametrize("settings", [{}, {"max_steps": 15, "max_epochs": -1}], ids=str)
def test_without_validation(settings: dict[str, Any], stop: Stop, tmp_path: Path) -> None:
    assert_exact(Own, stop, tmp_path, validation=None, **settings)


@pytest.mark.parametrize("stop", [BATCHES[1], BATCHES[4], BATCHES[6], ("on_validation_end", 1)], ids=str)
def test_between_accumulations_and_where_validation_is_rare(stop: Stop, tmp_path: Path) -> None:
    assert_exact(Own, stop, tmp_path, accumulate_grad_batches=2)
    assert_exact(Own, stop, tmp_path / "rare", check_val_every_n_epoch=2)


class Dies(Callback):
    """Breaks off as the n-th batch begins."""

    def __init__(self, count: int) -> None:
        self.count = count

    def on_train_batch_start(self, *_: Any) -> None:
        self.count -= 1
        if not self.count:
            raise StopError


SAVERS: dict[str, Callable[[], list[Callback]]] = {
    "by default": lambda: [ModelCheckpoint()],
    "every two steps": lambda: [ModelCheckpoint(every_n_train_steps=2, save_top_k=-1)],
    "every epoch's last step": lambda: [ModelCheckpoint(every_n_train_steps=5, save_top_k=-1)],
    "the best": lambda: [
        ModelCheckpoint(monitor="val_loss", save_top_k=-1),
        EarlyStopping("val_loss", patience=9),
    ],
    "after validation": lambda: [
        ModelCheckpoint(monitor="val_loss", save_top_k=-1, save_on_train_epoch_end=False),
        EarlyStopping("loss_epoch", patience=9),
    ],
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dies", [7, 9, 11])
@pytest.mark.parametrize("savers", SAVERS.values(), ids=SAVERS)
def test_a_run_that_dies_later_than_its_checkpoint(
    savers: Callable[[], list[Callback]], dies: int, tmp_path: Path
) -> None:
    whole_log, log = Log(), Log()
    whole = Run(Own, tmp_path / "whole", whole_log, *savers())
    broken = Run(Own, tmp_path / "parts", log, *savers(), Dies(dies))
    saved = max((tmp_path / "parts").rglob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    resumed = Run(Own, tmp_path / "parts", log, *savers(), ckpt_path=saved)
    left = len(resumed.module.seen)
    assert 15 - left <= len(broken.module.seen) < 15
    assert resumed.module.seen == whole.module.seen[-left:]
    assert_equal(whole.random, resumed.random)
    assert_equal(weights(whole.module), weights(resumed.module))
    assert log.values == whole_log.values


def test_a_run_that_is_stopped_twice(tmp_path: Path) -> None:
    whole_log, log, seen = Log(), Log(), []
    whole = Run(Own, tmp_path / "whole", whole_log)
    saved = None
    for count, hook in ((4, "on_train_batch_end"), (1, "on_validation_end"), (3, "on_train_batch_end")):
        path = tmp_path / f"{hook}{count}.ckpt"
        seen += Run(Own, tmp_path, log, StopAfter(count, path, hook), ckpt_path=saved).module.seen
        saved = path
    resumed = Run(Own, tmp_path, log, ckpt_path=saved)
    assert seen + resumed.module.seen == whole.module.seen
    assert_equal(whole.held, resumed.held)
    assert log.values == whole_log.values


def test_it_goes_on_beyond_the_end(tmp_path: Path) -> None:
    whole = Run(Own, tmp_path / "whole", Log())
    Run(Own, tmp_path / "parts", Log(), max_epochs=2)
    resumed = Run(Own, tmp_path / "parts", Log(), ckpt_path=tmp_path / "parts" / "end.ckpt")
    assert_equal(whole.held, resumed.held)


@pytest.mark.parametrize("data", [Own, OwnStream, lambda: DataLoader(Samples(), batch_size=BATCH)])
@quietly
def test_it_changes_nothing_in_a_run_that_is_not_resumed(data: Callable[[], Any], tmp_path: Path) -> None:
    found = []
    for techniques in ([], [lt.ExactResume()]):
        module, log = Learner(), Log()
        seed(3)
        saver = ModelCheckpoint(tmp_path / str(len(techniques)), every_n_train_steps=2)
        runner = trainer(*techniques, saver, logger=log)
        runner.fit(module, data(), shuffled())
        found.append((weights(module), module.seen, log.values, torch.get_rng_state()))
        assert "on_advance_start" not in vars(runner.fit_loop)
        assert "_on_before_fetch" not in vars(runner.fit_loop.epoch_loop)
    assert_equal(*found)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("regime", ["16-mixed", "manual", "accumulation"])
@pytest.mark.parametrize("stop", [*STOPS, BATCHES[4]], ids=str)
def test_together_with_all_others(stop: Stop, regime: str, tmp_path: Path) -> None:
    def run(root: Path, *more: Callback, ckpt_path: Path | None = None) -> tuple[Any, Trainer]:
        techniques = [*five(), lt.ExactResume()]
        return fit(REGIMES[regime], *techniques, *more, root=tmp_path / root, ckpt_path=ckpt_path)

    whole, whole_runner = run(Path("whole"))
    saved = tmp_path / "parts" / "stopped.ckpt"
    with pytest.raises(StopError):
        run(Path("parts"), StopAfter(stop[1], saved, stop[0]))
    resumed, runner = run(Path("parts"), ckpt_path=saved)
    assert_equal(weights(whole), weights(resumed))
    assert_equal(full_state(whole_runner, tmp_path / "a.ckpt"), full_state(runner, tmp_path / "b.ckpt"))
