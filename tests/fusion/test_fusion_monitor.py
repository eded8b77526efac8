"""WeightFusion and what it is measured by: weights that were seen, and metrics that the end of fit finds."""

from __future__ import annotations

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_tricks.averaging.ema import EMAWeights
from lightning_tricks.core.collect import BestK, LastEpochs
from lightning_tricks.fusion.fusion import WeightFusion
from lightning_tricks.fusion.greedy_soup import GreedySoup
from tests.fusion.runs import Epochs, HalfAverage, Normed, always, fit, loaders, mean
from tests.fusion.test_fusion_refusals import refused
from tests.toys import Toy, assert_equal, trainer, weights


def best(**settings) -> WeightFusion:
    return always(collect=BestK(2), monitor="val_loss", mode="min", **settings)


@pytest.mark.parametrize("average_first", [True, False])
@pytest.mark.parametrize("kind", [EMAWeights, HalfAverage])
def test_live_weights_are_not_chosen_by_the_metric_of_their_average(kind, average_first, tmp_path):
    match = (
        rf"source must be 'average' for BestK\(k=2\) where validation sees the average of {kind.__name__}, "
        "got 'live': write source='average'"
    )
    average, fusion = kind(), best()
    spy, pair = Epochs(), [average, fusion] if average_first else [fusion, average]
    with pytest.raises(ValueError, match=match):
        fit(tmp_path, spy, *pair)
    assert spy.steps == []


def test_an_average_that_is_kept_apart_is_not_collected(tmp_path):
    match = "source must be 'live' where no technique averages weights for evaluation, got 'average'"
    refused(tmp_path, best(source="average"), match, EMAWeights(evaluate=False))


@pytest.mark.parametrize(
    ("evaluate", "fusion"),
    [
        (True, lambda: best(source="average")),
        (False, best),
        # Nothing is chosen while it trains, and the end measures what it fuses.
        (True, lambda: always(collect=LastEpochs(2))),
        (True, lambda: always(collect=LastEpochs(2), method=GreedySoup(), monitor="val_loss", mode="min")),
    ],
)
def test_weights_that_were_seen_or_are_seen_at_the_end_are_right(evaluate, fusion, tmp_path):
    fit(tmp_path, EMAWeights(evaluate=evaluate), built := fusion(), max_epochs=2)
    assert built.outcome()["kept"] is True


def test_all_averages_are_collected(tmp_path):
    first = EMAWeights(params="head.*", label="first", decay=0.5)
    second = EMAWeights(params="body.*", label="second", decay=0.5)
    module, _ = fit(tmp_path / "two", first, second, always(collect=LastEpochs(2), source="average"))
    one, _ = fit(tmp_path / "one", EMAWeights(decay=0.5), always(collect=LastEpochs(2), source="average"))
    assert_equal(weights(module), weights(one))


class Logs(Callback):
    """Logs a metric of its own in a hook of validation."""

    def __init__(self, hook: str = "on_validation_epoch_end") -> None:
        setattr(self, hook, self.tell)

    def tell(self, trainer, pl_module, *_) -> None:
        pl_module.log("theirs", 1.0)


@pytest.mark.parametrize("hook", ["on_validation_epoch_end", "on_validation_batch_end"])
@pytest.mark.parametrize(("sanity", "steps"), [(1, 0), (0, 5)])
@pytest.mark.parametrize("val", [1, 2])
@pytest.mark.parametrize("of", ["monitor", "method"])
def test_a_metric_of_a_callback_is_refused_at_the_first_validation(hook, sanity, steps, val, of, tmp_path):
    suffix = "/dataloader_idx_1" if val == 2 and hook == "on_validation_batch_end" else ""
    name = f"theirs{suffix}"
    settings = {"monitor": name} if of == "monitor" else {"method": GreedySoup(name, "min"), "monitor": "x"}
    if of == "method":
        settings["monitor"] = "val_loss" if val == 1 else "val_loss/dataloader_idx_0"
    spy, fusion = Epochs(), WeightFusion(mode="min", **settings)
    train, valid = loaders()
    runner = trainer(Logs(hook), fusion, spy, default_root_dir=tmp_path, num_sanity_val_steps=sanity)
    with pytest.raises(
        ValueError,
        match=f"monitor must be logged by the module in validation, got {name!r}, which a callback logs: "
        "callbacks take no part in the passes at the end of fit",
    ):
        runner.fit(Several(), train, [valid] * val)
    assert len(spy.steps) == steps


class Several(Toy):
    """Validates on one loader or on several."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0) -> None:
        super().validation_step(batch, batch_idx)


def test_a_metric_that_module_and_callback_log_is_the_modules(tmp_path):
    class Both(Normed):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            self.log("theirs", -1.0 * (self.current_epoch % 2))

    spy = Epochs()
    fusion = always(collect=BestK(1), monitor="theirs", mode="min")
    module, _ = fit(tmp_path, Logs(), spy, fusion, module=Both())
    assert_equal(weights(module), spy.ends[1])


def test_the_metric_that_model_checkpoint_monitors_may_be_a_callbacks_but_not_ours(tmp_path):
    saver = ModelCheckpoint(tmp_path / "mine", monitor="theirs")
    with pytest.raises(ValueError, match="got 'theirs', which a callback logs"):
        fit(tmp_path, Logs(), saver, WeightFusion())


class Quiet(Normed):
    """Overrides the hook in which a callback logs, so that the metric seems to be its own."""

    def on_validation_epoch_end(self) -> None:
        pass


@pytest.mark.parametrize(
    "fusion",
    [
        lambda: WeightFusion(collect=LastEpochs(2), monitor="theirs", mode="min"),
        lambda: always(collect=BestK(2), monitor="theirs", mode="min"),
        lambda: always(collect=LastEpochs(2), method=GreedySoup("theirs", "min")),
    ],
)
def test_a_metric_that_is_missing_at_the_end_costs_only_the_fusion(fusion, tmp_path):
    spy, built = Epochs(), fusion()
    with pytest.warns(
        UserWarning,
        match="left the weights as they are, since a validation without callbacks lacks its metric: "
        "monitor must be logged by validation, got 'theirs'",
    ):
        module, _ = fit(tmp_path, Logs(), spy, built, module=Quiet())
    assert_equal(weights(module), spy.ends[-1])
    assert built.outcome() == {"snapshots": 2, "kept": False}
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.suffix] == []


def test_a_misspelt_metric_is_shown_the_nearest(tmp_path):
    match = "got 'val_los'; it logs 'val_loss', 'norm'; did you mean 'val_loss'"
    refused(
        tmp_path,
        WeightFusion(monitor="val_los", mode="min"),
        match,
        module=Normed(),
        num_sanity_val_steps=1,
    )


def test_the_mean_of_the_best_averages(tmp_path):
    average, means = HalfAverage(), []

    class Means(Epochs):
        def on_train_epoch_end(self, trainer, pl_module):
            means.append({name: value.clone() for name, value in average.average().items()})

    module, _ = fit(tmp_path, average, Means(), best(source="average"), max_epochs=2)
    wanted, held = mean(means), weights(module)
    assert_equal({name: held[name] for name in wanted}, wanted)
