"""What checkpoints of Schedule-Free training hold, what goes on from them, and BatchNorm at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import schedulefree
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from torch import nn

from lightning_tricks import EverySteps, LastEpochs, ScheduleFree, WeightFusion, average_state, live_state
from tests.averaging.test_evaluated import SavesLate
from tests.averaging.watching import Watch, differ, parameters
from tests.toys import Loader, StopAfter, StopError, Toy, assert_equal, trainer, weights
from tests.updates.test_schedule_free import FORMS, VALIDATION, Free


class Saves(Checkpoint):
    """Saves full and weights-only checkpoints in the middle of an epoch, in a validation and after it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _save(self, trainer: Trainer, moment: str) -> None:
        trainer.save_checkpoint(self.folder / f"{moment}.ckpt")
        trainer.save_checkpoint(self.folder / f"{moment}-slim.ckpt", weights_only=True)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == 7:
            self._save(trainer, "step")

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._save(trainer, "within")

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        self._save(trainer, "validation")


def test_every_checkpoint_holds_x_and_y_48(tmp_path: Path) -> None:
    module, watch = Free(), Watch()
    runner = trainer(ScheduleFree(), watch, Saves(tmp_path))
    runner.fit(module, Loader(), VALIDATION)
    runner.save_checkpoint(tmp_path / "fit.ckpt")
    runner.save_checkpoint(tmp_path / "fit-slim.ckpt", weights_only=True)
    assert_equal(weights(module), watch.seen[-1])
    last = {"within": 15, "validation": 15, "fit": 15, "step": 7}
    for moment, step in last.items():
        for path in (tmp_path / f"{moment}.ckpt", tmp_path / f"{moment}-slim.ckpt"):
            assert_equal(live_state(path), watch.steps[step])
            if step == 15:
                assert_equal(average_state(path), watch.seen[-1])
            held = torch.load(path, weights_only=True)
            assert_equal(held["state_dict"], average_state(path))
            for state in held.get("optimizer_states", []):
                assert [group["train_mode"] for group in state["param_groups"]] == [False]


def test_a_checkpoint_is_what_the_package_asks_for(tmp_path: Path) -> None:
    """A plain loop without the technique goes on from it by the optimizer's own ``train()``."""
    module, watch = Free(), Watch()
    runner = trainer(ScheduleFree(), watch)
    runner.fit(module, Loader(), VALIDATION)
    runner.save_checkpoint(tmp_path / "a.ckpt")
    held = torch.load(tmp_path / "a.ckpt", weights_only=True)
    plain = Free()
    plain.load_state_dict(held["state_dict"])
    assert_equal(weights(plain), watch.seen[-1])  # for inference
    optimizer = plain.configure_optimizers()
    optimizer.load_state_dict(held["optimizer_states"][0])
    optimizer.train()
    for name, value in weights(plain).items():
        torch.testing.assert_close(value, watch.steps[-1][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_a_resumed_run_is_the_uninterrupted_one(form: Any, tmp_path: Path) -> None:
    whole, saved = Free(form), tmp_path / "a.ckpt"
    trainer(ScheduleFree()).fit(whole, Loader(), VALIDATION)
    with pytest.raises(StopError):
        trainer(ScheduleFree(), StopAfter(8, saved)).fit(Free(form), Loader(), VALIDATION)
    parts = Free(form)
    trainer(ScheduleFree()).fit(parts, Loader(), VALIDATION, ckpt_path=saved)
    assert_equal(weights(parts), weights(whole))


class ByHand(Free):
    """Switches by itself, as one does without the technique."""

    def on_train_start(self) -> None:
        self.optimizers().train()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.trainer.optimizers[0].eval()
        checkpoint["state_dict"] = weights(self)
        checkpoint["optimizer_states"] = [self.trainer.optimizers[0].state_dict()]
        self.trainer.optimizers[0].train()


def test_a_checkpoint_in_eval_mode_of_a_run_without_it_goes_on(tmp_path: Path) -> None:
    saved, before = tmp_path / "a.ckpt", Watch()
    with pytest.raises(StopError):
        trainer(before, StopAfter(8, saved)).fit(ByHand(), Loader())
    watch = Watch()
    trainer(ScheduleFree(), watch).fit(Free(), Loader(), ckpt_path=saved)
    for name, value in watch.starts[0].items():
        torch.testing.assert_close(value, before.steps[-1][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("normed", [False, True])
def test_a_resumed_run_with_nothing_left_to_do_holds_x(normed: bool, tmp_path: Path) -> None:
    kind = Normed if normed else Free
    first = kind()
    runner = trainer(ScheduleFree())
    runner.fit(first, Loader(), VALIDATION)
    runner.save_checkpoint(tmp_path / "a.ckpt")
    second = kind()
    again = trainer(ScheduleFree())
    again.fit(second, Loader(), VALIDATION, ckpt_path=tmp_path / "a.ckpt")
    assert_equal(weights(second), weights(first))
    again.save_checkpoint(tmp_path / "b.ckpt")
    for state in (live_state, average_state):
        assert_equal(state(tmp_path / "b.ckpt"), state(tmp_path / "a.ckpt"))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_fresh_trainer_tests_x(tmp_path: Path) -> None:
    module, saves = Free(), ModelCheckpoint(dirpath=tmp_path, monitor="val_loss")
    runner = trainer(ScheduleFree(), saves)
    runner.fit(module, Loader(), VALIDATION)
    for technique in ([ScheduleFree()], []):
        [tested] = trainer(*technique).validate(Free(), VALIDATION, saves.best_model_path, verbose=False)
        assert tested["val_loss"] == pytest.approx(saves.best_model_score.item(), rel=1e-6)


def test_a_checkpoint_after_an_error_in_validation_holds_both(tmp_path: Path) -> None:
    class Breaks(Free):
        def on_validation_batch_end(self, *_: Any) -> None:
            if self.current_epoch == 1:
                raise StopError

    watch = Watch()
    saves = SavesLate(tmp_path)
    with pytest.raises(StopError):
        trainer(ScheduleFree(), watch, saves).fit(Breaks(), Loader(), VALIDATION)
    for path in (saves.full, saves.slim):
        assert_equal(live_state(path), watch.steps[-1])
        assert_equal(average_state(path), watch.seen[-1])


class Normed(Free):
    """The same with BatchNorm behind its first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh())


class Insists(Normed):
    """Puts its optimizer into train mode before each step, which it is in."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.optimizers().train()
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("kind", [Normed, Insists])
def test_batchnorm_at_the_end_is_that_of_x_over_the_training_data(kind: type[Normed]) -> None:
    module, loader = kind(), Loader(fixed=True)
    trainer(ScheduleFree()).fit(module, loader)
    inputs = torch.cat([batch[0] for batch in Loader(fixed=True)])
    seen = module.body[0](inputs).detach()
    torch.testing.assert_close(module.body[1].running_mean, seen.mean(0))
    torch.testing.assert_close(module.body[1].running_var, seen.var(0, correction=0))


@pytest.mark.parametrize("update", [True, False])
def test_statistics_of_y_stay_beside_and_come_back(update: bool, tmp_path: Path) -> None:
    module, watch = Normed(), Watch()
    runner = trainer(ScheduleFree(update_batchnorm=update), watch, max_epochs=1)
    runner.fit(module, Loader(), VALIDATION)
    held = weights(module)
    assert torch.equal(held["body.1.running_mean"], watch.steps[-1]["body.1.running_mean"]) == (not update)
    assert_equal(parameters(held), parameters(watch.seen[-1]))
    runner.save_checkpoint(tmp_path / "a.ckpt")
    assert_equal(average_state(tmp_path / "a.ckpt"), held)
    assert_equal(live_state(tmp_path / "a.ckpt"), watch.steps[-1])
    runner.fit_loop.max_epochs = 2
    runner.fit(module, Loader(), VALIDATION)
    assert_equal(watch.starts[1], watch.steps[5])


def test_other_statistics_put_in_with_other_weights_are_kept() -> None:
    module, watch = Normed(), Watch()
    runner = trainer(ScheduleFree(), watch, max_epochs=1)
    runner.fit(module, Loader())
    others = weights(Normed())
    module.load_state_dict(others)
    runner.fit_loop.max_epochs = 2
    runner.fit(module, Loader())
    assert_equal(watch.starts[1], others)


def test_fusing_one_average_gives_x(tmp_path: Path) -> None:
    def fusion(source: str) -> WeightFusion:
        settings = {"collect": LastEpochs(1), "keep": "always", "update_batchnorm": False}
        return WeightFusion(source=source, **settings)

    plain, watch = Free(), Watch()
    trainer(ScheduleFree(), watch).fit(plain, Loader(), VALIDATION)
    for source, expected in (("average", weights(plain)), ("live", watch.steps[-1])):
        module = Free()
        folder = tmp_path / source
        runner = trainer(ScheduleFree(), fusion(source), default_root_dir=folder)
        runner.fit(module, Loader(), VALIDATION)
        assert_equal(weights(module), expected)
    assert differ(weights(plain), watch.steps[-1])


def test_averages_that_are_collected_are_not_those_of_later_validations(tmp_path: Path) -> None:
    seen = []
    for others in ([], [WeightFusion(source="average", collect=EverySteps(2, k=2), keep="always")]):
        watch = Watch()
        runner = trainer(ScheduleFree(), *others, watch, default_root_dir=tmp_path)
        runner.fit(Free(), Loader(), VALIDATION)
        seen.append(watch.seen)
    assert_equal(*seen)


@pytest.mark.parametrize("resumed", [False, True])
def test_after_a_fusion_training_goes_on_from_y_with_its_statistics(resumed: bool, tmp_path: Path) -> None:
    def fit(module: Normed, runner: Trainer, epochs: int, path: Path | None = None) -> None:
        runner.fit_loop.max_epochs = epochs
        runner.fit(module, Loader(), VALIDATION, ckpt_path=path)

    def run() -> tuple[Normed, Watch, Trainer]:
        watch, fusion = Watch(), WeightFusion(collect=LastEpochs(2), keep="always")
        return Normed(), watch, trainer(fusion, ScheduleFree(), watch, default_root_dir=tmp_path)

    module, watch, runner = run()
    fit(module, runner, 2)
    runner.save_checkpoint(tmp_path / "a.ckpt")
    assert_equal(average_state(tmp_path / "a.ckpt"), weights(module))  # the fused ones
    assert_equal(live_state(tmp_path / "a.ckpt"), watch.steps[-1])
    if resumed:
        module, again, runner = run()
        fit(module, runner, 3, tmp_path / "a.ckpt")
        assert_equal(again.starts[0], watch.steps[10])
    else:
        fit(module, runner, 3)
        assert_equal(watch.starts[1], watch.steps[10])


def test_the_toy_trains_to_a_lower_loss_at_x_than_at_y() -> None:
    """What it is for: at a rate at which the weights jump about, their average is the better model."""
    module, watch = Toy(), Watch()
    module.configure_optimizers = lambda: schedulefree.SGDScheduleFree(module.parameters(), lr=20.0)
    runner = trainer(ScheduleFree(), watch, max_epochs=20)
    runner.fit(module, Loader(fixed=True))
    [at_x] = runner.validate(module, Loader(fixed=True), verbose=False)
    module.load_state_dict(watch.steps[-1])
    [at_y] = runner.validate(module, Loader(fixed=True), verbose=False)
    assert at_x["val_loss"] < at_y["val_loss"]
