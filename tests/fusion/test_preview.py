"""Previews of a fusion: validated while it trains, and nothing else of the run is touched."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

import lightning_tricks as lt
from tests.fusion.runs import Epochs, HalfAverage, Normed, always, fit, mean, state_of
from tests.toys import StopAfter, StopError, Toy, assert_equal


class Watch(Callback):
    """Notes the metric of each preview, where a callback that is listed later finds it."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.norms.append(float(trainer.callback_metrics.get("weight_fusion/norm", -1)))


def norm(model: dict) -> float:
    named = dict(Toy().named_parameters())
    return float(sum(model[name].square().sum() for name in named)) ** 0.5


def test_what_the_snapshots_so_far_would_make_is_validated_beside(tmp_path: Path) -> None:
    spy, watch, plain = Epochs(), Watch(), Epochs()
    fit(tmp_path / "plain", plain, module=Normed(), max_epochs=4)
    logger = CSVLogger(tmp_path)
    fusion = always(collect=lt.LastEpochs(2), every="2 epochs")
    fit(tmp_path, spy, fusion, watch, module=Normed(), max_epochs=4, logger=logger)
    assert_equal(spy.steps, plain.steps)
    # In the validations of the epochs 2 and 4, before the snapshot of that epoch is taken.
    first, second = norm(spy.ends[0]), norm(mean(spy.ends[1:3]))
    assert watch.norms == pytest.approx([-1, first, first, second])
    rows = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    names = rows[0].split(",")
    seen = [dict(zip(names, row.split(","), strict=True)) for row in rows[1:]]
    told = [(row["step"], float(row["weight_fusion/norm"])) for row in seen if row["weight_fusion/norm"]]
    assert told == [("9", pytest.approx(first)), ("19", pytest.approx(second))]


@pytest.mark.parametrize("average_first", [True, False])
def test_beside_an_average_that_stands_in_for_the_validation(average_first: bool, tmp_path: Path) -> None:
    spy, plain = Epochs(), Epochs()
    fit(tmp_path / "plain", HalfAverage(), plain)
    pair = [HalfAverage(), always(collect=lt.LastEpochs(2), every="1 epoch", update_batchnorm=True)]
    fit(tmp_path, *(pair if average_first else pair[::-1]), spy)
    assert_equal(spy.steps, plain.steps)


@pytest.mark.parametrize("method", [lt.GreedySoup("val_loss", "min"), lt.Interpolate(0.5)])
def test_methods_that_evaluate_and_methods_that_wait_for_enough(method, tmp_path: Path) -> None:
    spy, plain, watch = Epochs(), Epochs(), Watch()
    fit(tmp_path / "plain", plain, module=Normed())
    fusion = always(method=method, collect=lt.LastEpochs(2), every=5, update_batchnorm=True)
    fit(tmp_path, fusion, spy, watch, module=Normed())
    assert_equal(spy.steps, plain.steps)
    assert [value > 0 for value in watch.norms] == [False, isinstance(method, lt.GreedySoup), True]


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    def fusion() -> lt.WeightFusion:
        return always(collect=lt.LastEpochs(2), every="2 epochs", update_batchnorm=True)

    whole, watch = Watch(), Watch()
    _, one = fit(tmp_path / "whole", fusion(), whole, module=Normed(), max_epochs=4)
    with pytest.raises(StopError):
        fit(tmp_path / "parts", fusion(), StopAfter(12, tmp_path / "a.ckpt"), module=Normed(), max_epochs=4)
    settings = {"module": Normed(), "max_epochs": 4, "ckpt_path": tmp_path / "a.ckpt"}
    _, two = fit(tmp_path / "parts", fusion(), watch, **settings)
    assert watch.norms == [-1, whole.norms[-1]]  # none is made up for in the third epoch
    assert_equal(state_of(one, tmp_path), state_of(two, tmp_path))


def test_an_error_in_a_preview_leaves_the_weights_that_train(tmp_path: Path) -> None:
    class Breaks(Normed):
        def on_validation_epoch_end(self) -> None:
            if not self.trainer.callbacks and self.trainer.current_epoch:
                raise StopError

    spy, module = Epochs(), Breaks()
    with pytest.raises(StopError):
        fit(tmp_path, spy, always(collect=lt.LastEpochs(2), every=5), module=module)
    assert_equal({name: value.detach() for name, value in module.state_dict().items()}, spy.steps[-1])


def test_without_validation_or_a_length_it_is_refused_before_the_first_batch(tmp_path: Path) -> None:
    spy = Epochs()
    with pytest.raises(ValueError, match="every must be left out of a run without validation, got 5"):
        fit(tmp_path, spy, always(every=5), val=False)
    with pytest.raises(ValueError, match="every must be in steps, or max_steps be set"):
        fit(tmp_path, spy, always(every="10%"), max_epochs=-1)
    assert spy.steps == []
