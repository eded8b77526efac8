"""What a run is measured by: asked for, or taken from ModelCheckpoint."""

from __future__ import annotations

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_tricks.lifecycle.evaluation import MissingMetricError, Objective, objective_of
from tests.toys import Loader, Toy, trainer


class Ask(Callback):
    def __init__(self, monitor, mode) -> None:
        self.asked, self.answer = (monitor, mode), None

    def on_fit_start(self, trainer, pl_module):
        self.answer = objective_of(trainer, *self.asked, otherwise="do without")


@pytest.mark.parametrize(
    ("monitor", "mode", "answer"),
    [
        (None, None, ("val_loss", -1.0)),
        (None, "max", ("val_loss", 1.0)),
        ("val_acc", None, ("val_acc", 1.0)),
        ("val_loss", None, ("val_loss", -1.0)),
        ("other", "min", ("other", -1.0)),
    ],
)
def test_the_objective_is_model_checkpoints_unless_given(monitor, mode, answer, tmp_path):
    savers = [
        ModelCheckpoint(tmp_path / "a"),
        ModelCheckpoint(tmp_path / "b", monitor="val_loss"),
        ModelCheckpoint(tmp_path / "c", monitor="val_acc", mode="max"),
    ]
    ask = Ask(monitor, mode)

    class Both(Toy):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            self.log("val_acc", 0.5)

    trainer(ask, *savers, max_epochs=1).fit(Both(), Loader(), Loader(2, seed=9))
    assert ask.answer == Objective(*answer)


@pytest.mark.parametrize(
    ("monitor", "mode", "val", "message"),
    [
        (None, None, True, "monitor must name a validation metric, got None, .* or do without"),
        ("x", None, True, "mode must be 'min' or 'max' for monitor 'x', got None"),
        ("x", "min", False, "monitor must be measured by validation, got 'x', .* or do without"),
    ],
)
def test_an_objective_that_cannot_be_measured_is_refused(monitor, mode, val, message):
    loaders = (Loader(), Loader(2, seed=9)) if val else (Loader(),)
    with pytest.raises(ValueError, match=message):
        trainer(Ask(monitor, mode)).fit(Toy(), *loaders)


def test_a_score_is_higher_where_the_metric_is_better():
    low, high = Objective("loss", -1.0), Objective("acc", 1.0)
    assert low.score({"loss": 0.25}) == -0.25 and low.metric(-0.25) == 0.25
    assert high.score({"acc": 0.25, "loss": 9.0}) == 0.25
    with pytest.raises(ValueError, match="must be logged by validation, got 'loss'; it logs 'a', 'b'"):
        low.score({"a": 1.0, "b": 2.0})
    with pytest.raises(ValueError, match="it logs nothing"):
        low.score({})


def test_the_nearest_metric_is_shown():
    with pytest.raises(MissingMetricError, match="it logs 'acc', 'val_loss'; did you mean 'val_loss'"):
        Objective("loss_val", 1.0).score({"acc": 1.0, "val_loss": 1.0})


def test_a_metric_that_only_others_log_is_told_apart():
    with pytest.raises(
        MissingMetricError, match="must be logged by the module .*, got 'a', which a callback"
    ):
        Objective("a", 1.0).score({"b": 1.0}, others={"a"})
    assert Objective("a", 1.0).score({"a": 2.0}, others={"a"}) == 2.0
