from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from lightning_tricks.core.duration import Horizon
from lightning_tricks.lifecycle.clock import Clock
from lightning_tricks.lifecycle.horizon import run_horizon
from lightning_tricks.updates.warmup_cosine import WarmupCosine
from tests.toys import Loader, StopAfter, StopError, Toy, assert_equal, trainer, weights


class Sees(Callback):
    """Takes the horizon at the start and the steps really made by the end of each epoch."""

    def __init__(self) -> None:
        self.ends: list[int] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.horizon: Horizon = run_horizon(trainer, Clock())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.ends.append(trainer.global_step)


@pytest.mark.parametrize("batches", [1, 4, 7])
@pytest.mark.parametrize("accumulate", [1, 3, {0: 1, 2: 4}, {1: 3}])
@pytest.mark.parametrize("settings", [{}, {"limit_train_batches": 3}, {"max_steps": 9}], ids=str)
def test_is_what_the_run_then_does(batches: int, accumulate: Any, settings: dict[str, Any]) -> None:
    sees = Sees()
    extra = [GradientAccumulationScheduler(accumulate)] if isinstance(accumulate, dict) else []
    if not extra:
        settings = {**settings, "accumulate_grad_batches": accumulate}
    runner = trainer(sees, *extra, max_epochs=4, **settings)
    runner.fit(Toy(), Loader(batches))
    assert sees.horizon.total == runner.global_step
    whole = sees.ends[:-1] if "max_steps" in settings else sees.ends  # the last may be cut short
    assert [sees.horizon.step_at(epoch + 1) for epoch in range(len(whole))] == whole


def test_reading_it_does_not_make_a_resumed_loader_start_again(tmp_path: Any) -> None:
    class Estimates(Callback):
        def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            _ = trainer.estimated_stepping_batches

    def resumed(*callbacks: Callback) -> dict[str, Any]:
        saved, module = tmp_path / "a.ckpt", Toy()
        with pytest.raises(StopError):
            trainer(StopAfter(7, saved)).fit(Toy(), Loader())
        trainer(*callbacks).fit(module, Loader(), ckpt_path=saved)
        return weights(module)

    whole = Toy()
    trainer().fit(whole, Loader())
    assert_equal(resumed(Sees()), weights(whole))
    with pytest.raises(AssertionError):  # what reading Lightning's own estimate does to the run
        assert_equal(resumed(Estimates()), weights(whole))


WITHIN, AT_THE_END = ("on_train_batch_end", 8), ("on_train_epoch_end", 2)


@pytest.mark.parametrize(
    ("stop", "batches", "settings"),
    [
        *((stop, 12, {"accumulate_grad_batches": 2}) for stop in (WITHIN, AT_THE_END)),
        *((stop, 24, {}) for stop in (WITHIN, ("on_validation_end", 1), AT_THE_END)),
        (AT_THE_END, 6, {}),
        (WITHIN, 12, {"max_epochs": 6}),
    ],
)
def test_a_run_that_goes_on_with_other_epochs_ends_where_it_then_ends(
    stop: tuple[str, int], batches: int, settings: dict[str, Any], tmp_path: Any
) -> None:
    def resumed(saved: Any, *callbacks: Callback) -> Any:
        runner = trainer(
            *callbacks,
            WarmupCosine(warmup=2),
            **{"max_epochs": 4, **settings},
            default_root_dir=tmp_path,
        )
        runner.fit(Toy(), Loader(batches), Loader(1, fixed=True), ckpt_path=saved)
        return runner

    def end(runner: Any) -> int:
        return next(c for c in runner.callbacks if isinstance(c, WarmupCosine)).outcome()["end"]

    saved = tmp_path / "a.ckpt"
    runner = trainer(WarmupCosine(warmup=2), StopAfter(stop[1], saved, stop[0]), max_epochs=4)
    with pytest.raises(StopError):
        runner.fit(Toy(), Loader(12), Loader(1, fixed=True))
    runner = resumed(saved)
    assert end(runner) == runner.global_step
    # Broken off and resumed once more, it ends at the same step.
    with pytest.raises(StopError):
        resumed(saved, StopAfter(5, tmp_path / "b.ckpt"))
    assert end(resumed(tmp_path / "b.ckpt")) == runner.global_step
