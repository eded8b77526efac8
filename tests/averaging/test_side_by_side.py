"""Averages that are kept apart, measured in the same validation as the one that is evaluated."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lightning_tricks import EMAWeights
from lightning_tricks.recipes.digits import QUIET, DigitsClassifier, DigitsData
from tests.averaging.watching import Watch, watched
from tests.toys import Loader, StopError, Toy, assert_equal, trainer, weights


def apart(decay: float = 0.99, label: str = "slow", **settings: Any) -> EMAWeights:
    return EMAWeights(decay=decay, label=label, evaluate=False, **settings)


class Losses(Callback):
    """Notes what each validation has logged, and in which modes training goes on."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.modes: set[bool] = set()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rows.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.modes |= {module.training for module in pl_module.modules()}

    def column(self, name: str) -> list[float]:
        return [row[name] for row in self.rows]


def losses_of(*callbacks: Callback) -> list[float]:
    losses = Losses()
    watched(callbacks[0], None, *callbacks[1:], losses)
    return losses.column("val_loss")


def test_each_has_the_loss_that_it_has_alone_and_the_run_stays_as_it_is(tmp_path: Path) -> None:
    losses, logger = Losses(), CSVLogger(tmp_path)
    slow, slower = apart(validate=True), apart(0.999, "slower", validate=True, buffers="average")
    module, watch, _ = watched(EMAWeights(decay=0.9), None, slow, slower, losses, logger=logger)
    alone, watch_alone, _ = watched(EMAWeights(decay=0.9))
    assert_equal(weights(module), weights(alone))
    assert_equal(watch.steps, watch_alone.steps)
    assert_equal(watch.seen, watch_alone.seen)
    assert losses.modes == {True}
    rows = list(csv.DictReader((Path(logger.log_dir) / "metrics.csv").read_text("utf-8").splitlines()))
    for name, ema in (
        ("val_loss", EMAWeights(decay=0.9)),
        ("slow/ema_weights/val_loss", EMAWeights(decay=0.99)),
        ("slower/ema_weights/val_loss", EMAWeights(decay=0.999, buffers="average")),
    ):
        expected = losses_of(ema)
        assert losses.column(name) == pytest.approx(expected, rel=1e-6), name
        logged = [(row["step"], float(row[name])) for row in rows if row[name]]
        assert [step for step, _ in logged] == ["4", "9", "14"]
        assert [value for _, value in logged] == pytest.approx(expected, rel=1e-6)


def accuracies(average: EMAWeights, name: str) -> list[float]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    losses = Losses()
    Trainer(max_epochs=2, callbacks=[average, losses], **QUIET).fit(DigitsClassifier(network), DigitsData())
    return losses.column(name)


def test_metric_objects_of_the_module_count_each_set_of_weights_by_itself() -> None:
    alone = accuracies(EMAWeights(decay=0.99), "val_accuracy")
    assert accuracies(apart(validate=True), "slow/ema_weights/val_accuracy") == alone
    assert accuracies(apart(validate=True), "val_accuracy") != alone


def test_a_checkpoint_may_be_chosen_by_it(tmp_path: Path) -> None:
    name = "slow/ema_weights/val_loss"
    saver, losses = ModelCheckpoint(tmp_path, monitor=name), Losses()
    trainer(EMAWeights(decay=0.9), apart(validate=True), losses, saver).fit(
        Toy(), Loader(), Loader(2, seed=9)
    )
    assert float(saver.best_model_score) == min(losses.column(name))


def test_sanity_check_and_validation_before_the_start_leave_it_out() -> None:
    losses = Losses()
    watched(apart(validate=True, start="2 epochs"), None, losses, num_sanity_val_steps=1)
    assert ["slow/ema_weights/val_loss" in row for row in losses.rows] == [False, False, False, True]


def test_an_error_in_it_leaves_the_live_weights() -> None:
    class Breaks(Toy):
        calls = 0

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.calls += 1
            if self.calls == 3:  # the first that is not the validation itself
                raise StopError
            super().validation_step(batch, batch_idx)

    module, watch = Breaks(), Watch()
    runner = trainer(apart(validate=True), watch)
    with pytest.raises(StopError):
        runner.fit(module, Loader(), Loader(2, seed=9))
    assert_equal(weights(module), watch.steps[-1])


@pytest.mark.parametrize(
    ("callbacks", "error"),
    [
        (
            lambda: [apart(validate=True), EMAWeights()],
            "to be listed before it, got it after: put EMAWeights",
        ),
        (lambda: [EMAWeights(validate=True)], "validate must be left out where evaluate=True"),
        (lambda: [apart(validate=1)], "validate must be True or False, got 1"),
    ],
)
def test_what_cannot_be_is_refused_before_it_starts(callbacks: Any, error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        watched(*(each := callbacks())[:1], None, *each[1:])


def test_a_run_without_validation_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"validate of EMAWeights\[slow\] needs validation, but the run has none"
    ):
        trainer(apart(validate=True)).fit(Toy(), Loader())
