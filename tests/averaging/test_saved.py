"""What checkpoints hold, and what a run makes of one."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_tricks.averaging.ema import EMAWeights
from lightning_tricks.lifecycle.checkpoints import average_state, live_state
from tests.averaging.watching import Watch, differ, every_kind, live_of, slow_twin, watched
from tests.toys import (
    Compiled,
    Loader,
    StopAfter,
    StopError,
    Toy,
    assert_equal,
    scaler_plugin,
    trainer,
    weights,
)

VALIDATION = Loader(2, seed=9)


def load(path: Path | str) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


@every_kind
@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize("save", ["average", "live"])
def test_every_checkpoint_holds_both_sets(kind: Any, save: str, weights_only: bool, tmp_path: Path) -> None:
    saves = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, save_weights_only=weights_only)
    watch = Watch()
    trainer(kind(save=save), watch, saves).fit(Toy(), Loader(), VALIDATION)
    for epoch in range(3):
        path = tmp_path / f"step={5 * (epoch + 1)}.ckpt"
        live, average = watch.steps[5 * (epoch + 1)], watch.seen[epoch]
        assert_equal(live_state(path), live)
        assert_equal(average_state(path), average)
        assert_equal(load(path)["state_dict"], average if save == "average" else live)
        other = Toy.load_from_checkpoint(path)
        assert_equal(weights(other), average if save == "average" else live)


def test_names_of_a_compiled_module_find_their_average(tmp_path: Path) -> None:
    module, watch, runner = watched(EMAWeights(decay=0.9), Compiled(), max_epochs=1)
    runner.save_checkpoint(tmp_path / "a.ckpt")
    assert_equal(live_state(tmp_path / "a.ckpt"), watch.steps[-1])
    assert_equal(average_state(tmp_path / "a.ckpt"), weights(module))
    assert any("_orig_mod" in name for name in weights(module))


@every_kind
def test_a_checkpoint_saved_within_a_validation_has_them_in_their_places(kind: Any, tmp_path: Path) -> None:
    class Saves(Callback):
        def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / "a.ckpt")
            trainer.save_checkpoint(tmp_path / "b.ckpt", weights_only=True)

    for precision in ("32-true", "bf16-true"):
        _, watch, _ = watched(kind(), None, Saves(), precision=precision)
        for name in ("a.ckpt", "b.ckpt"):
            assert_equal(live_state(tmp_path / name), watch.steps[-1])
            assert_equal(average_state(tmp_path / name), watch.seen[-1])


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # no ModelCheckpoint on resume
@pytest.mark.parametrize("save", ["average", "live"])
def test_two_averages_of_different_weights_share_the_checkpoint(save: str, tmp_path: Path) -> None:
    class Saves(Watch):
        def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / "within.ckpt")

    saves = ModelCheckpoint(tmp_path, "slim", save_weights_only=True)
    body, head = (
        EMAWeights(label=name, params=name, decay=decay, save=save)
        for name, decay in (("body", 0.9), ("head", 0.5))
    )
    module, watch = Toy(), Saves()
    runner = trainer(body, head, watch, saves)
    runner.fit(module, Loader(), VALIDATION)
    runner.save_checkpoint(tmp_path / "after.ckpt")
    assert differ(watch.seen[-1], watch.steps[-1])
    for name in ("within", "slim", "after"):
        assert_equal(live_state(tmp_path / f"{name}.ckpt"), watch.steps[-1])
        assert_equal(average_state(tmp_path / f"{name}.ckpt"), watch.seen[-1])
    resumed = Toy()
    trainer(
        EMAWeights(label="body", params="body", decay=0.9, save=save),
        EMAWeights(label="head", params="head", decay=0.5, save=save),
    ).fit(resumed, Loader(), ckpt_path=tmp_path / "after.ckpt")
    assert_equal(weights(resumed), weights(module))


def test_before_start_a_checkpoint_stays_as_it_is(tmp_path: Path) -> None:
    for weights_only in (True, False):
        ema, watch = EMAWeights(decay=0.9, start=8), Watch()
        saves = ModelCheckpoint(tmp_path, "early", every_n_train_steps=5, save_weights_only=weights_only)
        late, told = "start comes at step 8, but the run has 5 steps", "averaged nothing"
        with pytest.warns(UserWarning, match=late), pytest.warns(UserWarning, match=told):
            trainer(ema, watch, saves, max_epochs=1).fit(Toy(), Loader())
        assert_equal(live_state(tmp_path / "early.ckpt"), watch.steps[5])
        with pytest.raises(ValueError, match="path must be a checkpoint with averaged weights"):
            average_state(tmp_path / "early.ckpt")


RESUMED = [
    {"decay": 0.9},
    {"decay": 0.9, "save": "live", "buffers": "average"},
    {"decay": "warmup('20%') >> linear(to=0.9)", "every": 3, "dtype": "float64"},
    {"decay": 0.9, "start": 8},
    {"decay": 0.9, "start": "1 epoch"},
]


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize("settings", RESUMED)
@pytest.mark.parametrize("stop", [4, 5, 9])  # within an epoch, at its end, in the next
def test_both_sets_survive_a_resume_to_the_bit(
    settings: dict[str, Any], stop: int, precision: str, tmp_path: Path
) -> None:
    def run(*callbacks: Callback, path: Path | None = None) -> tuple[EMAWeights, Toy, Trainer]:
        ema, module = EMAWeights(**settings), Toy()
        runner = trainer(ema, *callbacks, precision=precision)
        runner.fit(module, Loader(), VALIDATION, ckpt_path=path)
        return ema, module, runner

    path = tmp_path / "stopped.ckpt"
    whole_ema, whole, whole_runner = run()
    with pytest.raises(StopError):
        run(StopAfter(stop, path))
    ema, module, runner = run(path=path)
    assert_equal(weights(module), weights(whole))
    assert_equal(live_of(ema, module), live_of(whole_ema, whole))
    assert_equal(ema.saved(), whole_ema.saved())
    for name, each in (("a", runner), ("b", whole_runner)):
        each.save_checkpoint(tmp_path / name)
    assert_equal(load(tmp_path / "a")["optimizer_states"], load(tmp_path / "b")["optimizer_states"])


def test_the_shadow_of_a_fused_optimizer_survives_a_resume_to_the_bit(tmp_path: Path) -> None:
    def run(*callbacks: Callback, path: Path | None = None) -> EMAWeights:
        ema = EMAWeights(decay=0.9, every=2)
        runner = trainer(ema, *callbacks, plugins=[scaler_plugin(2.0**30)])
        runner.fit(Toy(fused=True), Loader(), VALIDATION, ckpt_path=path)
        return ema

    with pytest.raises(StopError):
        run(StopAfter(7, tmp_path / "a.ckpt"))
    assert_equal(run(path=tmp_path / "a.ckpt").saved(), run().saved())


def test_a_checkpoint_saved_after_fit_resumes_from_the_live_weights(tmp_path: Path) -> None:
    _, watch, runner = watched(EMAWeights(decay=0.9))
    runner.save_checkpoint(tmp_path / "a.ckpt")
    longer, resumed = Watch(), Toy()
    runner = trainer(EMAWeights(decay=0.9), longer, max_epochs=4)
    runner.fit(resumed, Loader(), VALIDATION, ckpt_path=tmp_path / "a.ckpt")
    assert_equal(longer.starts[0], watch.steps[-1])
    expected = slow_twin(watch.steps + longer.steps[1:], lambda _: 0.9, warmup=True, every=1, start=0)
    torch.testing.assert_close(resumed.head.weight.detach(), expected["head.weight"])


@every_kind
def test_what_replaces_the_average_after_fit_is_saved_as_held_and_the_average_survives(
    kind: Any,
    tmp_path: Path,
) -> None:
    ema = kind()
    module, watch, runner = watched(ema)
    average = weights(module)
    with torch.no_grad():
        module.head.weight.zero_()
    runner.save_checkpoint(tmp_path / "a.ckpt")
    assert not average_state(tmp_path / "a.ckpt")["head.weight"].any()
    assert_equal(live_state(tmp_path / "a.ckpt"), watch.steps[-1])
    resumed = Toy()
    trainer(kind()).fit(resumed, Loader(), VALIDATION, ckpt_path=tmp_path / "a.ckpt")
    assert_equal(weights(resumed), average)  # nothing was left to train


def test_a_weights_only_file_is_evaluated_with_the_average_also_if_it_saves_the_live_weights(
    tmp_path: Path,
) -> None:
    scores = []
    for weights_only in (False, True):
        ema, module = EMAWeights(decay=0.9, save="live"), Toy()
        runner = trainer(ema)
        runner.fit(module, Loader())
        runner.save_checkpoint(tmp_path / "a.ckpt", weights_only=weights_only)
        scores.append(
            runner.test(module, Loader(2, fixed=True), ckpt_path=tmp_path / "a.ckpt", verbose=False)
        )
    assert scores[0] == scores[1]


@every_kind
def test_a_finished_run_fitted_again_still_ends_with_the_average(kind: Any, tmp_path: Path) -> None:
    for save in ("average", "live"):
        ema = kind(dtype="float64", save=save)
        module, _, runner = watched(ema)
        average, live, state = weights(module), live_of(ema, module), ema.saved()
        runner.save_checkpoint(tmp_path / "a.ckpt")
        runner.fit(module, Loader())
        assert_equal(weights(module), average)
        again, resumed = kind(dtype="float64", save=save), Toy()
        trainer(again).fit(resumed, Loader(), ckpt_path=tmp_path / "a.ckpt")
        assert_equal(weights(resumed), average)
        assert_equal(live_of(again, resumed), live)
        assert_equal(again.saved(), state)


def test_the_modules_own_hook_sees_the_sets_and_is_given_back(tmp_path: Path) -> None:
    class Hooked(Toy):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["noted"] = checkpoint["state_dict"]["head.weight"] + 0.0

    ema = EMAWeights(decay=0.9)
    module, _, runner = watched(ema, Hooked())
    for weights_only in (True, False):
        runner.save_checkpoint(tmp_path / "a.ckpt", weights_only=weights_only)
        assert torch.equal(load(tmp_path / "a.ckpt")["noted"], module.head.weight)
    plain = trainer(max_epochs=1)
    plain.fit(module, Loader())
    plain.save_checkpoint(tmp_path / "b.ckpt", weights_only=True)
    assert "current_model_state" not in load(tmp_path / "b.ckpt")


@every_kind
def test_a_copy_of_the_module_is_free_of_the_technique(kind: Any) -> None:
    module, _, _ = watched(kind())
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for other in (copy.deepcopy(module), torch.load(file, weights_only=False)):
        assert_equal(weights(other), weights(module))
        checkpoint = {"state_dict": other.state_dict()}
        other.on_save_checkpoint(checkpoint)
        assert checkpoint.keys() == {"state_dict"}
        assert other.on_save_checkpoint.__self__ is other
