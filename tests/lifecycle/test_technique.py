from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    EMAWeightAveraging,
    StochasticWeightAveraging,
)

from lightning_tricks import ConflictError, GradientClip, WarmupCosine
from lightning_tricks.lifecycle.conductor import Conductor
from lightning_tricks.lifecycle.ownership import foreign_claims
from tests.toys import Loader, StopAfter, StopError, Toy, TwoOptimizers, trainer


def test_one_conductor_stands_before_all_but_tuners() -> None:
    stopper = EarlyStopping("train_loss", strict=False, check_on_train_epoch_end=False)
    first, second = GradientClip(), WarmupCosine()
    runner = trainer(stopper, first, second)
    for _ in range(2):
        runner.fit(Toy(), Loader())
    kinds = [type(callback) for callback in runner.callbacks]
    assert kinds == [Conductor, EarlyStopping, GradientClip, WarmupCosine]
    assert first.clock is second.clock


@pytest.mark.parametrize("take", [list, deepcopy])
def test_callbacks_of_another_trainer_do_not_bring_its_clock(take: Any) -> None:
    first = trainer(GradientClip())
    first.fit(Toy(), Loader())
    second = trainer(*take(first.callbacks))
    second.fit(Toy(), Loader())
    (conductor,) = [callback for callback in second.callbacks if isinstance(callback, Conductor)]
    assert conductor.clock.position == 15
    assert next(c for c in second.callbacks if isinstance(c, GradientClip)).outcome()["steps"] == 15


def test_a_checkpoint_of_a_callback_listed_first_holds_the_right_position(tmp_path: Path) -> None:
    class Saves(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 7:
                trainer.save_checkpoint(tmp_path / "a.ckpt")

    trainer(Saves(), GradientClip()).fit(Toy(), Loader())
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert state["callbacks"]["Conductor"]["position"] == state["global_step"] == 7


def test_without_a_trainer_there_is_no_clock() -> None:
    with pytest.raises(RuntimeError, match=r"GradientClip must be added to Trainer\(callbacks="):
        _ = GradientClip().clock


def test_changed_settings_are_named_on_resume(tmp_path: Path) -> None:
    saved = tmp_path / "a.ckpt"
    with pytest.raises(StopError):
        trainer(GradientClip(max_norm=1.0), StopAfter(3, saved)).fit(Toy(), Loader())
    with pytest.warns(
        UserWarning, match="GradientClip was resumed with changed settings: max_norm 1.0 -> 2.0$"
    ):
        trainer(GradientClip(max_norm=2.0)).fit(Toy(), Loader(), ckpt_path=saved)


def test_any_schedule_keeps_what_is_spent_when_the_run_grows_on_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "a.ckpt"
    settings = {"max_norm": "warmup('40%') >> linear(to=0.5)", "max_value": "linear(to=0.1)"}
    with pytest.raises(StopError):
        trainer(GradientClip(**settings), StopAfter(7, saved)).fit(Toy(), Loader())
    runner = trainer(GradientClip(**settings), max_epochs=6)
    runner.fit(Toy(), Loader(), ckpt_path=saved)
    said = capsys.readouterr().out
    assert "GradientClip: max_norm now ends at step 30, not 15" in said
    assert "GradientClip: max_value now ends at step 30, not 15" in said
    # 40 % of the first run's 15 steps, and then down to 0.5 at 30: at the last step a 24th is left.
    assert runner.callback_metrics["gradient_clip/threshold"] == pytest.approx(0.5 + 0.5 / 24)


def test_another_schedule_on_resume_starts_from_its_own_lengths(tmp_path: Path) -> None:
    saved, clip = tmp_path / "a.ckpt", GradientClip(max_norm="warmup(4) >> linear(to=0.5)")
    with pytest.raises(StopError):
        trainer(GradientClip(max_norm="warmup(9) >> linear(to=0.5)"), StopAfter(7, saved)).fit(
            Toy(), Loader()
        )
    with pytest.warns(UserWarning, match="changed settings"):
        trainer(clip).fit(Toy(), Loader(), ckpt_path=saved)
    runner = trainer(clip)
    runner.fit(Toy(), Loader())
    assert runner.callback_metrics["gradient_clip/threshold"] == pytest.approx(0.5 + 0.5 / 11)


def test_a_resumed_run_with_nothing_left_to_do_keeps_its_clock(tmp_path: Path) -> None:
    runner = trainer(GradientClip())
    runner.fit(Toy(), Loader())
    runner.save_checkpoint(tmp_path / "a.ckpt")
    again = trainer(GradientClip())
    again.fit(Toy(), Loader(), ckpt_path=tmp_path / "a.ckpt")
    again.save_checkpoint(tmp_path / "b.ckpt")
    state = torch.load(tmp_path / "b.ckpt", weights_only=True)["callbacks"]["Conductor"]
    assert (state["position"], state["updates"]) == (15, 15)
    kept = torch.load(tmp_path / "b.ckpt", weights_only=True)["callbacks"]["GradientClip"]
    assert kept["state"]["steps"] == 15


def test_an_evaluation_of_a_checkpoint_leaves_the_clock_of_training_alone(tmp_path: Path) -> None:
    clip, runner = GradientClip(), trainer(StopAfter(5, tmp_path / "a.ckpt"))
    runner.callbacks.append(clip)
    with pytest.raises(StopError):
        runner.fit(Toy(), Loader())
    runner = trainer(clip)
    runner.fit(Toy(), Loader())
    runner.validate(Toy(), Loader(2), ckpt_path=tmp_path / "a.ckpt", verbose=False)
    runner.fit_loop.max_epochs = 4
    runner.fit(Toy(), Loader())
    assert clip.clock.position == runner.global_step == 20


def test_a_technique_added_on_resume_knows_the_position(tmp_path: Path) -> None:
    saved, clip = tmp_path / "a.ckpt", GradientClip()
    with pytest.raises(StopError):
        trainer(StopAfter(7, saved)).fit(Toy(), Loader())
    trainer(clip).fit(Toy(), Loader(), ckpt_path=saved)
    assert clip.clock.position == 15
    assert clip.outcome()["steps"] == 8


def test_state_is_kept_by_class_and_label(tmp_path: Path) -> None:
    runner = trainer(GradientClip(label="body", params="body"), GradientClip(params="head"))
    runner.fit(Toy(), Loader())
    runner.save_checkpoint(tmp_path / "a.ckpt")
    keys = torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"].keys()
    assert keys == {"Conductor", "GradientClip[body]", "GradientClip"}


def test_a_new_trainer_starts_afresh_also_after_an_evaluation(tmp_path: Path) -> None:
    clip = GradientClip()
    trainer(clip).fit(Toy(), Loader())
    assert clip.outcome()["steps"] == 15
    later = trainer(clip, max_epochs=1)
    later.validate(Toy(), Loader(2), verbose=False)
    later.fit(Toy(), Loader())
    assert clip.outcome()["steps"] == 5


@pytest.mark.parametrize("mode", ["barebones", "fast_dev_run"])
def test_trial_runs_are_left_in_peace(mode: str) -> None:
    settings: dict[str, Any] = {mode: True, "logger": None}
    if mode == "barebones":
        settings |= dict.fromkeys(["enable_checkpointing", "num_sanity_val_steps", "log_every_n_steps"])
    runner = trainer(GradientClip(), WarmupCosine(warmup=500), **settings)
    runner.fit(Toy(), Loader())  # a warning would be an error


def test_what_is_not_ours_has_claims_too() -> None:
    class Own(Toy):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

        def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
            pass

    callbacks = (
        EMAWeightAveraging(),
        StochasticWeightAveraging(1e-2),
        BackboneFinetuning(),
    )
    runner = trainer(*callbacks)
    runner.strategy.connect(Own())
    runner.strategy.lr_scheduler_configs = [object()]
    found = {(claim.slot, claim.owner) for claim in foreign_claims(runner, Own())}
    assert found == {
        ("clipping", "Own.configure_gradient_clipping"),
        ("lr", "the scheduler of Own.configure_optimizers"),
        ("lr_decay", "the scheduler of Own.configure_optimizers"),
        ("lr_warmup", "the scheduler of Own.configure_optimizers"),
        ("lr_goal", "the scheduler of Own.configure_optimizers"),
        ("eval_weights", "EMAWeightAveraging"),
        ("final_weights", "EMAWeightAveraging"),
        ("eval_weights", "StochasticWeightAveraging"),
        ("final_weights", "StochasticWeightAveraging"),
        ("lr", "StochasticWeightAveraging"),
        ("lr_decay", "StochasticWeightAveraging"),
        ("lr_warmup", "StochasticWeightAveraging"),
        ("lr_goal", "StochasticWeightAveraging"),
        ("requires_grad", "BackboneFinetuning"),
        ("param_groups", "BackboneFinetuning"),
    }


def test_conflict_with_lightnings_own_callback_is_found_before_the_first_batch() -> None:
    with pytest.raises(ConflictError, match="remove StochasticWeightAveraging, or remove WarmupCosine"):
        trainer(WarmupCosine(), StochasticWeightAveraging(1e-2)).fit(Toy(), Loader())


def test_manual_steps_that_come_late_are_said() -> None:
    class EveryOther(TwoOptimizers):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            if batch_idx % 2:
                super().training_step(batch, batch_idx)

    with pytest.warns(UserWarning, match="the run was taken to make 5 steps until now, but made 2"):
        trainer(WarmupCosine(warmup=1)).fit(EveryOther(), Loader())
