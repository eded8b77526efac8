"""The metric that ProgressiveUnfreeze watches: where it may come from, and when its absence is said."""

from __future__ import annotations

import pytest
from lightning.pytorch import Callback

from lightning_tricks.lifecycle.watching import watched
from lightning_tricks.network.openings import Plateau
from lightning_tricks.network.unfreeze import ProgressiveUnfreeze
from tests.network.deep import Deep, Graded, Watch, fit


def unfreeze(monitor: str) -> ProgressiveUnfreeze:
    return ProgressiveUnfreeze(stages=["head", ("mid", "body")], at=Plateau(monitor, patience=1))


@pytest.mark.parametrize(("sanity", "batches"), [(1, 0), (0, 5)])
def test_a_misspelt_metric_stops_the_run_at_the_first_chance(sanity, batches):
    module, watch = Deep(), Watch()
    with pytest.raises(ValueError, match="got 'val_los'; it logs 'val_loss'; did you mean 'val_loss'"):
        fit(module, unfreeze("val_los"), watch, num_sanity_val_steps=sanity)
    assert len(watch.open) == batches
    assert all(p.requires_grad for p in module.parameters())


def test_the_error_says_what_to_do_if_it_is_no_slip():
    with pytest.raises(ValueError, match="val_los") as caught:
        fit(Deep(), unfreeze("val_los"), num_sanity_val_steps=1)
    assert "num_sanity_val_steps=0" in " ".join(caught.value.__notes__)


def test_a_metric_that_the_sanity_check_leaves_out_may_come_later():
    watch = Watch()
    said = "ProgressiveUnfreeze watches 'grade', but the sanity check logged 'val_loss': if the first validat"
    with pytest.warns(UserWarning, match=said) as caught:
        fit(Graded(0.5, 0.5, 0.5), unfreeze("grade"), watch, num_sanity_val_steps=1)
    assert sum("watches" in str(warning.message) for warning in caught) == 1
    assert watch.open == ["h"] * 10 + ["hmb"] * 5


def test_one_that_does_not_come_stops_the_run_at_the_first_validation():
    watch = Watch()
    with (
        pytest.warns(UserWarning, match="the run stops there"),
        pytest.raises(ValueError, match="monitor must be logged by validation, got 'grade'"),
    ):
        fit(Deep(), unfreeze("grade"), watch, num_sanity_val_steps=1)
    assert len(watch.open) == 5


class Logs(Callback):
    """Logs a metric of its own, in sanity checks too or not."""

    def __init__(self, *, early: bool) -> None:
        self.early = early

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        if self.early or not trainer.sanity_checking:
            pl_module.log("theirs", 1.0)


@pytest.mark.parametrize("sanity", [0, 1])
@pytest.mark.parametrize("ours_first", [False, True])
def test_a_metric_of_a_callback_is_watched(sanity, ours_first):
    watch = Watch()
    callbacks = [Logs(early=True), unfreeze("theirs")]
    fit(Deep(), *callbacks[:: -1 if ours_first else 1], watch, num_sanity_val_steps=sanity)
    assert watch.open == ["h"] * 10 + ["hmb"] * 5


def test_a_metric_that_a_callback_logs_after_the_sanity_check_only_is_watched():
    watch = Watch()
    with pytest.warns(UserWarning, match="watches 'theirs'"):
        fit(Deep(), Logs(early=False), unfreeze("theirs"), watch, num_sanity_val_steps=1)
    assert watch.open == ["h"] * 10 + ["hmb"] * 5


def test_without_validation_there_is_nothing_to_watch():
    with pytest.raises(ValueError, match="at needs validation to watch 'val_los', but the run has none"):
        fit(Deep(), unfreeze("val_los"), limit_val_batches=0)


def test_where_nothing_is_left_to_open_nothing_is_asked_for():
    fit(Deep(), ProgressiveUnfreeze(stages=["*"], at=Plateau("val_los")), num_sanity_val_steps=1)


@pytest.mark.parametrize("monitor", ["val_los", "vla_loss", "val/loss", "valid_loss", "val_loss1"])
def test_a_slip_is_an_error_in_the_sanity_check(monitor):
    with pytest.raises(ValueError, match="did you mean 'val_loss'"):
        watched(monitor, {"train_loss": 2.0, "val_loss": 1.0}, sanity=True)


@pytest.mark.parametrize("monitor", ["val_auroc", "val_loss_ema", "fid"])
@pytest.mark.parametrize("logged", [{}, {"val_loss": 1.0, "val_accuracy": 0.5}])
def test_another_metric_is_none_there_but_an_error_later(monitor, logged):
    assert watched(monitor, logged, sanity=True) is None
    with pytest.raises(ValueError, match=f"got '{monitor}'"):
        watched(monitor, logged, sanity=False)


@pytest.mark.parametrize("sanity", [True, False])
def test_a_metric_that_is_there_is_taken_whatever_is_near(sanity):
    assert watched("val_loss", {"val_loss": 0.25, "val_los": 1.0}, sanity=sanity) == 0.25
