"""The files of a run that was broken off, resumed, fitted again, or beside others in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from lightning_tricks import EMAWeights, PostHocEMA, live_state, synthesize_ema
from lightning_tricks.averaging.trajectory import Trajectory
from tests.averaging.test_post_hoc import folder, run
from tests.toys import Loader, StopError, Toy, assert_equal, trainer, weights


class Crash(Callback):
    """Saves a checkpoint after one step, and breaks off after another."""

    def __init__(self, saved_at: int, broken_at: int, path: Path) -> None:
        self.saved_at, self.broken_at, self.path = saved_at, broken_at, path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.saved_at:
            trainer.save_checkpoint(self.path)
        if trainer.global_step == self.broken_at:
            raise StopError


def contents(place: Path) -> dict[str, Any]:
    """What the index names, by file name."""
    moments = Trajectory.read(place).moments
    return {moment.name: moment.as_tensors() for moment in moments}


def state(runner: Trainer, path: Path) -> dict[str, Any]:
    runner.save_checkpoint(path)
    return torch.load(path, weights_only=True)["callbacks"]["PostHocEMA"]


@pytest.mark.parametrize(("stop", "precision"), [(2, "32-true"), (8, "bf16-true"), (21, "32-true")])
def test_a_resumed_run_ends_with_the_files_of_one_that_was_not(tmp_path, stop, precision):
    settings = {"every": 3, "snapshot_every": 4}

    def fit(root: Path, *callbacks: Callback, **options: Any) -> tuple[Any, Trainer]:
        module, technique = Toy(), PostHocEMA(**settings)
        runner = trainer(technique, *callbacks, default_root_dir=root, max_epochs=6, precision=precision)
        runner.fit(module, Loader(), **options)
        return weights(module), runner

    parts, saved = tmp_path / "parts", tmp_path / "parts" / "checkpoints" / "stopped.ckpt"
    whole, runner = fit(tmp_path / "whole")
    with pytest.raises(StopError):
        fit(parts, Crash(stop, stop + 6, saved))
    written = contents(folder(parts))
    assert max(Trajectory.read(folder(parts)).updates) > stop
    found, resumed = fit(parts, ckpt_path=saved)
    assert_equal(found, whole)
    assert_equal(contents(folder(parts)), contents(folder(tmp_path / "whole")))
    assert list(contents(folder(parts)))[-1].startswith("000008-")  # at 4, 8, ..., 28, 30
    assert written.keys() <= contents(folder(parts)).keys()
    assert_equal(state(resumed, tmp_path / "a.ckpt"), state(runner, tmp_path / "b.ckpt"))


def test_what_a_run_has_written_after_the_checkpoint_is_left_out_if_it_goes_on_otherwise(tmp_path):
    saved = tmp_path / "checkpoints" / "stopped.ckpt"
    settings = {"snapshot_every": 4}
    with pytest.raises(StopError):
        run(tmp_path, PostHocEMA(**settings), Crash(10, 24, saved), epochs=8)
    abandoned = contents(folder(tmp_path))
    other = Toy(lr=0.001)
    run(tmp_path, PostHocEMA(**settings), module=other, epochs=8)  # not resumed: a folder of its own
    with pytest.raises(
        ValueError, match="must hold one folder of post_hoc_ema, got post_hoc_ema, post_hoc_ema-v1"
    ):
        synthesize_ema(tmp_path / "checkpoints")
    runner = trainer(PostHocEMA(**settings), default_root_dir=tmp_path, max_epochs=8)
    runner.fit(Toy(lr=0.001), Loader(seed=5), ckpt_path=saved)
    found = contents(folder(tmp_path))
    assert Trajectory.read(folder(tmp_path)).updates == list(range(4, 41, 4))
    assert list(found)[:2] == list(abandoned)[:2]
    assert not found.keys() & set(list(abandoned)[2:])
    assert len([*folder(tmp_path).glob("*.pt")]) == 10 + 4


def test_files_go_along_to_another_folder(tmp_path):
    saved = tmp_path / "first" / "checkpoints" / "stopped.ckpt"
    settings = {"snapshot_every": 4}
    with pytest.raises(StopError):
        run(tmp_path / "first", PostHocEMA(**settings), Crash(10, 14, saved), epochs=4)
    before = contents(folder(tmp_path / "first"))
    run_on = trainer(PostHocEMA(**settings), default_root_dir=tmp_path / "second", max_epochs=4)
    run_on.fit(Toy(lr=0.01), Loader(), ckpt_path=saved)
    assert Trajectory.read(folder(tmp_path / "second")).updates == [4, 8, 12, 16, 20]
    assert_equal(contents(folder(tmp_path / "first")), before)


def test_a_missing_file_is_named(tmp_path):
    saved = tmp_path / "checkpoints" / "stopped.ckpt"
    with pytest.raises(StopError):
        run(tmp_path, PostHocEMA(snapshot_every=4), Crash(10, 14, saved), epochs=4)
    gone = sorted(folder(tmp_path).glob("000002-*"))[0]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=gone.name):
        synthesize_ema(tmp_path / "checkpoints")
    with pytest.raises(FileNotFoundError, match=gone.name):
        trainer(PostHocEMA(snapshot_every=4), default_root_dir=tmp_path).fit(Toy(), Loader(), ckpt_path=saved)


def test_other_gammas_are_refused_on_a_resume(tmp_path):
    saved = tmp_path / "stopped.ckpt"
    with pytest.raises(StopError):
        run(tmp_path, PostHocEMA(), Crash(3, 3, saved), epochs=2)
    runner = trainer(PostHocEMA(gammas=(3.0,)), default_root_dir=tmp_path)
    with (
        pytest.warns(UserWarning, match="changed settings: gammas"),
        pytest.raises(ValueError, match=r"gammas must stay \(16.97, 6.94\) .*, got \(3.0,\)"),
    ):
        runner.fit(Toy(), Loader(), ckpt_path=saved)


@pytest.mark.parametrize("first", [0, 1])
def test_beside_an_average_that_is_evaluated_it_keeps_its_own(tmp_path, first):
    saved = tmp_path / "stopped.ckpt"
    _, alone, _ = run(tmp_path / "alone", PostHocEMA(), epochs=4)

    def both() -> list[Callback]:
        pair = [PostHocEMA(), EMAWeights(decay=0.5)]
        return pair if first else pair[::-1]

    _, watch, _ = run(tmp_path / "both", *both(), epochs=4)
    assert_equal(watch.steps, alone.steps)
    assert_equal(contents(folder(tmp_path / "both")), contents(folder(tmp_path / "alone")))
    with pytest.raises(StopError):
        run(tmp_path / "parts", *both(), Crash(7, 7, saved), epochs=4)
    runner = trainer(*both(), default_root_dir=tmp_path / "parts", max_epochs=4)
    runner.fit(Toy(lr=0.01), Loader(), ckpt_path=saved)
    assert_equal(contents(folder(tmp_path / "parts")), contents(folder(tmp_path / "alone")))
    runner.save_checkpoint(saved)
    assert_equal(dict(live_state(saved)), alone.steps[-1])


def test_added_on_a_resume_it_begins_with_the_weights_as_they_are_and_says_so(tmp_path, capsys):
    saved = tmp_path / "stopped.ckpt"
    with pytest.raises(StopError):
        run(tmp_path, EMAWeights(decay=0.5), Crash(5, 5, saved), epochs=4)
    runner = trainer(EMAWeights(decay=0.5), PostHocEMA(), default_root_dir=tmp_path, max_epochs=4)
    runner.fit(Toy(lr=0.01), Loader(), ckpt_path=saved)
    assert "PostHocEMA: the checkpoint holds no average" in capsys.readouterr().out
    assert Trajectory.read(folder(tmp_path)).updates == list(range(1, 16))


def test_the_next_fit_begins_anew_in_another_folder(tmp_path):
    module, _, runner = run(tmp_path, PostHocEMA(snapshot_every=5), epochs=2)
    before = contents(folder(tmp_path))
    runner.fit_loop.max_epochs = 4
    runner.fit(module, Loader())
    assert_equal(contents(folder(tmp_path)), before)
    assert Trajectory.read(tmp_path / "checkpoints" / "post_hoc_ema-v1").updates == [5, 10]


def test_a_trial_writes_nothing(tmp_path):
    run(tmp_path, PostHocEMA(), epochs=1, fast_dev_run=True)
    assert not folder(tmp_path).exists()


def test_two_in_one_run_have_folders_of_their_own(tmp_path):
    pair = [PostHocEMA(label="head", params="head"), PostHocEMA(label="body", params="body", every=2)]
    module, _, _ = run(tmp_path, *pair, epochs=4)
    for label in ("head", "body"):
        found = synthesize_ema(tmp_path / "checkpoints" / f"post_hoc_ema-{label}")
        same = {name for name, value in found.items() if torch.equal(value, module.state_dict()[name])}
        assert {name for name in found if name.endswith(("weight", "bias"))} - same == {
            name for name in found if name.startswith(label) and name.endswith(("weight", "bias"))
        }
    with pytest.raises(ValueError, match="label must be a part of a folder's name, got 'a/b'"):
        PostHocEMA(label="a/b")
