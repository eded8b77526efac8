"""WeightFusion over several runs: resumed, continued, saved, broken off."""

from __future__ import annotations

import errno
import os
from contextlib import nullcontext
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from lightning_tricks.core.collect import BestK, EverySteps, LastEpochs
from lightning_tricks.fusion.fusion import WeightFusion
from lightning_tricks.lifecycle.files import load
from tests.fusion.runs import Epochs, Normed, always, fit, loaders, mean, state_of
from tests.toys import StopAfter, StopError, assert_equal, trainer, weights


class SaveAt(Checkpoint):
    """Saves a checkpoint in one hook of the second epoch, and breaks off there or a batch later."""

    def __init__(self, hook: str, path: Path, *, later: bool = False) -> None:
        self.hook, self.path, self.later, self.saved = hook, path, later, False

    def _at(self, hook: str, trainer) -> None:
        if self.saved:
            raise StopError
        if hook == self.hook and trainer.current_epoch == 1:
            trainer.save_checkpoint(self.path)
            self.saved = True
            if not self.later:
                raise StopError

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self._at("last batch" if batch_idx == 4 else "batch", trainer)

    def on_validation_end(self, trainer, pl_module) -> None:
        if not self.saved:
            self._at("validation", trainer)

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        if not self.saved:
            self._at("epoch", trainer)


COLLECTS = {
    "LastEpochs": lambda: always(collect=LastEpochs(2)),
    "EverySteps": lambda: always(collect=EverySteps(3, k=3)),
    "BestK": lambda: always(collect=BestK(2), monitor="val_loss", mode="min"),
    "BatchNorm": lambda: WeightFusion(collect=LastEpochs(3), keep="always"),
}


@pytest.mark.parametrize("hook", ["batch", "last batch", "validation", "epoch"])
@pytest.mark.parametrize("collect", COLLECTS)
def test_resumed_equals_uninterrupted(collect, hook, tmp_path):
    later = collect == "EverySteps"
    if collect == "BestK" and hook == "last batch":
        pytest.skip("Lightning never runs the validation that was due there")
    whole, whole_runner = fit(tmp_path / "whole", COLLECTS[collect](), max_epochs=4)
    path = tmp_path / "a.ckpt"
    with pytest.raises(StopError):
        fit(tmp_path / "parts", COLLECTS[collect](), SaveAt(hook, path, later=later), max_epochs=4)
    parts, runner = fit(tmp_path / "parts", COLLECTS[collect](), ckpt_path=path, max_epochs=4)
    assert_equal(weights(whole), weights(parts))
    assert_equal(state_of(whole_runner, tmp_path), state_of(runner, tmp_path))


@pytest.mark.parametrize("where", ["same folder", "new folder"])
def test_resumed_from_the_last_checkpoint_of_model_checkpoint(where, tmp_path):
    """It is written in validation, before the end of the epoch drops a snapshot that it names."""

    def saver(folder: str) -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path / folder, monitor="val_loss", save_last=True)

    whole, _ = fit(tmp_path, saver("whole"), always(collect=LastEpochs(2)), max_epochs=6)
    with pytest.raises(StopError):
        fit(tmp_path, saver("a"), always(collect=LastEpochs(2)), StopAfter(23, tmp_path / "x"), max_epochs=6)
    again = saver("a" if where == "same folder" else "b")
    last = tmp_path / "a" / "last.ckpt"
    moved = pytest.warns(UserWarning, match="dirpath has changed")
    with moved if where == "new folder" else nullcontext():
        parts, _ = fit(tmp_path, again, always(collect=LastEpochs(2)), ckpt_path=last, max_epochs=6)
    assert_equal(weights(whole), weights(parts))


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_snapshot_is_named_before_the_first_batch(damage, tmp_path):
    path = tmp_path / "a.ckpt"
    with pytest.raises(StopError):
        fit(tmp_path, always(collect=LastEpochs(5)), StopAfter(12, path))
    (victim,) = (tmp_path / "checkpoints" / "snapshots").glob("000002-*.pt")
    data = victim.read_bytes()
    victim.unlink()
    if damage == "truncated":
        victim.write_bytes(data[:-1])
    spy = Epochs()
    with pytest.raises((FileNotFoundError, ValueError), match=rf"{victim.name} must"):
        fit(tmp_path, always(collect=LastEpochs(5)), spy, ckpt_path=path)
    assert spy.steps == []


def test_added_on_a_resume_it_begins_with_what_is_to_come(tmp_path):
    path = tmp_path / "a.ckpt"
    with pytest.raises(StopError):
        fit(tmp_path, StopAfter(7, path))
    spy = Epochs()
    module, _ = fit(tmp_path, always(collect=LastEpochs(5)), spy, ckpt_path=path)
    assert_equal(weights(module), mean(spy.ends))
    assert len(spy.ends) == 2


class Breaks(Normed):
    """Breaks off in the third batch of the extra passes; they are those without callbacks."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.calls = where, 0

    def _step(self, where: str) -> None:
        self.calls += where == self.where and not self.trainer.callbacks
        if self.calls == 3:
            raise StopError

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self._step("validation")  # of two batches: the third is the first with fused weights

    def training_step(self, batch, batch_idx):
        self._step("batchnorm")
        return super().training_step(batch, batch_idx)


class FullDisk(Epochs):
    """Lets nothing be written after the last epoch."""

    def on_train_epoch_end(self, trainer, pl_module):
        super().on_train_epoch_end(trainer, pl_module)
        if trainer.current_epoch == 2:
            os.fsync = self.refuse

    def refuse(self, *_):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["validation", "batchnorm", "disk"])
def test_an_error_at_the_end_leaves_the_modules_own_weights(where, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", os.fsync)  # given back at the end
    module, spy = Breaks(where), FullDisk() if where == "disk" else Epochs()
    fusion = WeightFusion(collect=LastEpochs(3), monitor="norm", mode="min")
    runner = trainer(fusion, spy, default_root_dir=tmp_path)
    with pytest.raises(OSError if where == "disk" else StopError):
        runner.fit(module, *loaders())
    assert_equal(weights(module), spy.ends[-1])
    assert fusion in runner.callbacks and spy in runner.callbacks
    assert all(part.training for part in module.modules())
    folder = tmp_path / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["snapshots"]
    assert len(list((folder / "snapshots").iterdir())) == 3


class Ranks(Epochs):
    """Compares the weights of two processes with one another."""

    def on_fit_end(self, trainer, pl_module) -> None:
        assert_equal(weights(pl_module), trainer.strategy.broadcast(weights(pl_module)))


def test_two_processes_hold_the_same_fused_weights(tmp_path):
    fusion = WeightFusion(collect=LastEpochs(2), monitor="val_loss", mode="min", keep="always")
    module, _ = fit(tmp_path, fusion, Ranks(), strategy="ddp_fork", devices=2)
    content = load(tmp_path / "checkpoints" / "fused.ckpt")
    assert_equal(weights(module), dict(content["state_dict"]))
    assert len(list((tmp_path / "checkpoints" / "snapshots").iterdir())) == 2
