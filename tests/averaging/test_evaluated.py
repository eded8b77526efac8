"""Which weights the module holds when: in training, in each evaluation, after it, after an error."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from lightning_tricks.averaging.ema import EMAWeights
from lightning_tricks.lifecycle.checkpoints import average_state, live_state
from tests.averaging.watching import Watch, differ, every_kind, live_of, slow_twin, watched
from tests.toys import Loader, StopError, Toy, assert_equal, trainer, weights

VALIDATION = Loader(2, seed=9)


def test_validation_sees_the_average_and_training_goes_on_with_the_live_weights() -> None:
    ema = EMAWeights(decay=0.9)
    module, watch, _ = watched(ema)
    assert len(watch.seen) == 3
    for epoch, seen in enumerate(watch.seen):
        after = watch.steps[: 5 * (epoch + 1) + 1]
        expected = slow_twin(after, lambda _: 0.9, warmup=True, every=1, start=0)
        torch.testing.assert_close(seen["head.weight"], expected["head.weight"])
        assert torch.equal(seen["body.1.running_mean"], after[-1]["body.1.running_mean"])
    assert_equal(watch.seen[-1], weights(module))
    assert_equal(live_of(ema, module), watch.steps[-1])


def test_swap_before_first_update_21724() -> None:
    ema = EMAWeights(start=100)
    late, told = "start comes at step 100, but", "EMAWeights averaged nothing, since start was not reached"
    with pytest.warns(UserWarning, match=late), pytest.warns(UserWarning, match=told):
        module, watch, _ = watched(ema)
    assert_equal(weights(module), watch.steps[-1])
    for epoch, seen in enumerate(watch.seen):
        assert_equal(seen, watch.steps[5 * (epoch + 1)])


def test_nothing_trained_is_said() -> None:
    with pytest.warns(UserWarning, match="EMAWeights averaged nothing, since no weight was trained"):
        module = Toy()
        module.head.requires_grad_(False)
        watched(EMAWeights(params="head"), module)


@pytest.mark.parametrize(("start", "first"), [(7, 7), ("1 epoch", 5), ("40%", 6)])
def test_average_begins_with_the_weights_that_start_finds(start: int | str, first: int) -> None:
    module, watch, _ = watched(EMAWeights(decay=0.9, start=start))
    expected = slow_twin(watch.steps, lambda _: 0.9, warmup=True, every=1, start=first)
    torch.testing.assert_close(module.head.weight.detach(), expected["head.weight"])
    assert_equal(watch.seen[0], watch.steps[5])  # not yet, or not yet moved


def test_a_share_of_an_endless_run_is_refused_before_it_starts() -> None:
    runner = trainer(EMAWeights(start="10%"), max_epochs=-1)
    with pytest.raises(ValueError, match="start must be in steps, or max_steps be set, .* got '10%'"):
        runner.fit(Toy(), Loader())


class Looks(Callback):
    """Notes at which of validation's hooks it sees which weights."""

    def __init__(self) -> None:
        self.noted: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.noted.clear()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.noted["start"] = pl_module.head.weight.detach().clone()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.noted["epoch_start"] = pl_module.head.weight.detach().clone()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.noted["epoch_end"] = pl_module.head.weight.detach().clone()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.noted["end"] = pl_module.head.weight.detach().clone()


class LooksItself(Toy):
    """A module that looks in its own hooks."""

    def on_validation_start(self) -> None:
        self.at_start = self.head.weight.detach().clone()

    def on_validation_epoch_end(self) -> None:
        self.at_end = self.head.weight.detach().clone()


@every_kind
def test_all_hooks_between_see_the_average_whatever_the_order_of_the_list(kind: Any) -> None:
    before, after = Looks(), Looks()
    module, watch = LooksItself(), Watch()
    trainer(before, kind(), after, watch).fit(module, Loader(), VALIDATION)
    average, live = watch.seen[-1]["head.weight"], watch.steps[-1]["head.weight"]
    held = {"start": live, "epoch_start": average, "epoch_end": average, "end": average}
    assert_equal(before.noted, held)
    assert_equal(after.noted, {**held, "start": average, "end": live})
    assert_equal([module.at_start, module.at_end], [average, average])


class Breaks(Callback):
    """Raises in the second validation."""

    def __init__(self, error: type[BaseException] = StopError) -> None:
        self.error = error

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.current_epoch == 1:
            raise self.error


class SavesLate(Checkpoint):
    """Saves after an error, when all other callbacks have had their turn."""

    def __init__(self, folder: Path) -> None:
        self.full, self.slim = folder / "full.ckpt", folder / "slim.ckpt"

    def on_exception(self, trainer: Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.full)
        trainer.save_checkpoint(self.slim, weights_only=True)


@every_kind
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize("error", [StopError, KeyboardInterrupt])
def test_an_error_in_validation_gives_the_live_weights_back(
    kind: Any, error: type[BaseException], precision: str, tmp_path: Path
) -> None:
    module, watch, ema = Toy(), Watch(), kind()
    saves = SavesLate(tmp_path)
    runner = trainer(ema, watch, Breaks(error), saves, precision=precision)
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises((StopError, SystemExit)):
            runner.fit(module, Loader(), VALIDATION)
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning has switched it off
    assert_equal(weights(module), watch.steps[-1])
    for path in (saves.full, saves.slim):
        assert_equal(live_state(path), watch.steps[-1])
        assert_equal(average_state(path), watch.seen[-1])


def test_after_an_error_in_training_evaluations_see_the_live_weights_too() -> None:
    class BreaksInTraining(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 7:
                raise StopError

    module, watch = Toy(), Watch()
    runner = trainer(EMAWeights(decay=0.9), watch, BreaksInTraining())
    with pytest.raises(StopError):
        runner.fit(module, Loader(), VALIDATION)
    runner.validate(module, VALIDATION, verbose=False)
    assert_equal(watch.seen[-1], watch.steps[7])


@every_kind
def test_evaluations_after_fit_see_the_average_and_leave_it(kind: Any, tmp_path: Path) -> None:
    ema = kind()
    module, watch, runner = watched(ema)
    average, live = weights(module), live_of(ema, module)
    watch.seen.clear()
    runner.save_checkpoint(tmp_path / "a.ckpt")
    for path in (None, tmp_path / "a.ckpt"):  # with a checkpoint Lightning's own shows the live ones
        runner.validate(module, VALIDATION, ckpt_path=path, verbose=False)
        runner.test(module, VALIDATION, ckpt_path=path, verbose=False)
        runner.predict(module, VALIDATION, ckpt_path=path)
    assert len(watch.seen) == 6
    for held in [*watch.seen, weights(module)]:
        assert_equal(held, average)
    assert_equal(live_of(ema, module), live)


@pytest.mark.parametrize("save", ["average", "live"])
def test_a_fresh_trainer_evaluates_the_average_of_a_checkpoint(save: str, tmp_path: Path) -> None:
    module, _, runner = watched(EMAWeights(decay=0.9, save=save))
    runner.save_checkpoint(tmp_path / "a.ckpt")
    other, watch = Toy(), Watch()
    trainer(EMAWeights(decay=0.9, save=save), watch).test(
        other, VALIDATION, ckpt_path=tmp_path / "a.ckpt", verbose=False
    )
    assert_equal(watch.seen[-1], weights(module))


def test_without_a_fit_evaluation_leaves_the_module_alone() -> None:
    module, ema = Toy(), EMAWeights()
    trainer(ema).test(module, VALIDATION, verbose=False)
    assert_equal(weights(module), weights(Toy()))
    with ema.live_weights():
        assert_equal(weights(module), weights(Toy()))


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_live_weights_end_with_what_the_module_held(precision: str) -> None:
    ema = EMAWeights(decay=0.9)
    module, watch, _ = watched(ema, precision=precision)
    with torch.no_grad():
        module.head.bias.add_(1.0)  # as a fusion after fit does
    held = weights(module)
    with pytest.raises(StopError), ema.live_weights():
        assert_equal(weights(module), watch.steps[-1])
        raise StopError
    assert_equal(weights(module), held)


def test_live_weights_within_a_validation() -> None:
    class Asks(Watch):
        def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            with ema.live_weights():
                self.live = weights(pl_module)
            self.seen.append(weights(pl_module))

    ema, asks = EMAWeights(decay=0.9), Asks()
    trainer(ema, asks).fit(Toy(), Loader(), VALIDATION)
    assert_equal(asks.live, asks.steps[-1])
    assert_equal(asks.seen[-1], asks.seen[-2])
    assert differ(asks.live, asks.seen[-1])


def test_an_evaluation_at_the_very_end_of_fit_finds_the_average_in_its_place() -> None:
    class Evaluates(Callback):
        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.fit_loop.epoch_loop.val_loop.run()

    ema = EMAWeights(decay=0.9)
    module, watch, _ = watched(ema, None, Evaluates())
    assert_equal(watch.seen[-1], watch.seen[-2])
    assert_equal(weights(module), watch.seen[-1])
    assert_equal(live_of(ema, module), watch.steps[-1])
