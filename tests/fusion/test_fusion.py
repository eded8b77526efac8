"""WeightFusion: what it collects, and what the module holds at the end."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_tricks.core.collect import BestK, EverySteps, LastEpochs
from lightning_tricks.fusion.average import Average
from lightning_tricks.fusion.ending import not_worse
from lightning_tricks.fusion.fusion import WeightFusion
from lightning_tricks.fusion.greedy_soup import GreedySoup
from lightning_tricks.fusion.interpolate import Interpolate
from lightning_tricks.lifecycle.batchnorm import reestimate_batchnorm
from tests.fusion.runs import Epochs, HalfAverage, Normed, Scripted, always, fit, mean
from tests.lifecycle.passes import AtEnd, visible
from tests.toys import Compiled, Toy, TwoOptimizers, assert_equal, scaler_plugin, weights

REGIMES = {
    "fp32": (Toy, dict),
    "bf16-mixed": (Toy, lambda: {"precision": "bf16-mixed"}),
    "bf16-true": (Toy, lambda: {"precision": "bf16-true"}),
    "scaler": (Toy, lambda: {"plugins": [scaler_plugin()]}),
    "accumulation": (Toy, lambda: {"accumulate_grad_batches": 2}),
    "manual": (TwoOptimizers, dict),
    "compiled": (Compiled, dict),
}


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_average_of_the_last_epochs(regime, k, tmp_path):
    kind, settings = REGIMES[regime]
    spy = Epochs()
    module, _ = fit(tmp_path, spy, always(collect=LastEpochs(k)), module=kind(), **settings())
    assert_equal(weights(module), mean(spy.ends[-k:]))


def test_every_n_optimizer_steps(tmp_path):
    spy = Epochs()
    module, _ = fit(tmp_path, spy, always(collect=EverySteps(4, k=2)))
    assert_equal(weights(module), mean([spy.steps[7], spy.steps[11]]))


def test_steps_are_optimizer_steps_not_batches(tmp_path):
    spy = Epochs()
    module, _ = fit(
        tmp_path, spy, always(collect=EverySteps(3, k=9)), accumulate_grad_batches=2, max_epochs=2
    )  # batches 0, 0, 1, 1, 1 | 2, 2, ...: three steps an epoch
    assert_equal(weights(module), mean([spy.steps[4], spy.steps[9]]))


@pytest.mark.parametrize(("mode", "best"), [("min", (1, 3)), ("max", (0, 4))])
def test_the_best_by_the_metric(mode, best, tmp_path):
    spy = Epochs()
    fusion = always(collect=BestK(2), monitor="metric", mode=mode)
    metrics = (5.0, 1.0, 4.0, 2.0, 6.0)
    module, _ = fit(tmp_path, spy, fusion, module=Scripted(*metrics), max_epochs=5, num_sanity_val_steps=1)
    assert_equal(weights(module), mean([spy.ends[i] for i in best]))


def test_a_metric_that_is_no_number_never_enters(tmp_path):
    spy = Epochs()
    fusion = always(collect=BestK(3), monitor="metric", mode="max")
    module, _ = fit(tmp_path, spy, fusion, module=Scripted(math.nan, 1.0, math.nan))
    assert_equal(weights(module), spy.ends[1])


def test_validations_within_an_epoch_are_collected_at_their_step(tmp_path):
    spy = Epochs()
    fusion = always(collect=BestK(9), monitor="val_loss", mode="min")
    module, _ = fit(tmp_path, spy, fusion, max_epochs=1, val_check_interval=2)
    assert_equal(weights(module), mean([spy.steps[1], spy.steps[3]]))


@pytest.mark.parametrize("average_first", [True, False])
@pytest.mark.parametrize("collect", [LastEpochs(2), EverySteps(5, k=2), BestK(2)])
def test_live_weights_are_collected_beside_an_average(average_first, collect, tmp_path):
    spy, plain = Epochs(), Epochs()
    fit(tmp_path / "plain", plain, max_epochs=2)
    fusion = always(collect=collect, monitor="val_loss", mode="min")
    average = HalfAverage(evaluate=not collect.monitored)
    pair = [average, fusion] if average_first else [fusion, average]
    module, _ = fit(tmp_path, spy, *pair, max_epochs=2)
    assert_equal(spy.ends, plain.ends)
    assert_equal(weights(module), mean(plain.ends))


@pytest.mark.parametrize("average_first", [True, False])
@pytest.mark.parametrize("kind", [Toy, Compiled])
def test_averaged_weights_are_collected_on_demand(average_first, kind, tmp_path):
    spy, average = Epochs(), HalfAverage()
    means = []

    class Means(Epochs):
        def on_train_epoch_end(self, trainer, pl_module):
            means.append({name: value.clone() for name, value in average.average().items()})

    fusion = always(collect=LastEpochs(2), source="average")
    pair = [average, fusion] if average_first else [fusion, average]
    module, _ = fit(tmp_path, spy, Means(), *pair, module=kind())
    wanted = mean(means[-2:])
    held = {name.replace("_orig_mod.", ""): value for name, value in weights(module).items()}
    assert_equal({name: held[name] for name in wanted}, wanted)
    stem = "body._orig_mod." if kind is Compiled else "body."
    assert torch.equal(held["body.1.running_mean"], mean(spy.ends[-2:])[f"{stem}1.running_mean"])


def test_before_there_is_an_average_the_live_weights_are_what_is_evaluated(tmp_path):
    spy = Epochs()
    fusion = always(collect=LastEpochs(3), source="average")
    module, _ = fit(tmp_path, spy, HalfAverage(start=99), fusion)
    assert_equal(weights(module), mean(spy.ends))


@pytest.mark.parametrize("mode", ["min", "max"])
def test_fused_weights_are_kept_if_the_metric_is_no_worse(mode, tmp_path):
    spy = Epochs()
    fusion = WeightFusion(collect=LastEpochs(3), monitor="norm", mode=mode, update_batchnorm=False)
    module, _ = fit(tmp_path, spy, fusion, module=Normed())
    fused, last = mean(spy.ends), spy.ends[-1]
    norms = [
        sum(w[name].square().sum() for name, _ in module.named_parameters()).sqrt().item()
        for w in (last, fused)
    ]
    result = fusion.outcome()
    assert [result["metric_before"], result["metric_fused"]] == pytest.approx(norms)
    better = (norms[1] < norms[0]) == (mode == "min")
    assert result["kept"] is better
    assert_equal(weights(module), fused if better else last)
    assert (tmp_path / "checkpoints" / "fused.ckpt").exists() is better
    assert set(result) == {"snapshots", "metric_before", "metric_fused", "kept"}


def test_an_equal_metric_is_no_worse():
    assert not_worse(1.0, 1.0) and not_worse(1.1, 1.0) and not not_worse(0.9, 1.0)
    assert not_worse(1.0, math.nan) and not not_worse(math.nan, 1.0) and not not_worse(math.nan, math.nan)
    assert not_worse(-math.inf, -math.inf) and not not_worse(math.nan, -math.inf)


@pytest.mark.parametrize("kept", [True, False])
def test_batchnorm_is_that_of_the_fused_weights_or_as_it_was(kept, tmp_path):
    spy = Epochs()
    after = AtEnd(reestimate_batchnorm)
    mode = "min" if kept else "max"
    fusion = WeightFusion(collect=LastEpochs(3), monitor="norm", mode=mode)
    module, _ = fit(tmp_path, spy, fusion, after, module=Normed(), enable_checkpointing=False)
    assert fusion.outcome()["kept"] is kept
    if kept:
        # Estimated once more with the fused weights, it is the same.
        assert_equal(after.before["weights"], after.after["weights"])
        assert not torch.equal(module.body[1].running_mean, mean(spy.ends)["body.1.running_mean"])
    else:
        assert_equal(after.before["weights"], spy.ends[-1])


def test_the_monitor_of_model_checkpoint_is_the_default(tmp_path):
    saver = ModelCheckpoint(tmp_path / "mine", monitor="norm", mode="max")
    fusion = WeightFusion(collect=LastEpochs(3), update_batchnorm=False)
    fit(tmp_path, fusion, saver, module=Normed())
    result = fusion.outcome()
    assert result["kept"] is (result["metric_fused"] >= result["metric_before"])
    assert len(list((tmp_path / "mine" / "snapshots").glob("000003-*.pt"))) == 1


def test_always_measures_only_what_is_asked_for(tmp_path):
    fusion = always(collect=LastEpochs(2))
    fit(tmp_path, fusion, val=False)
    assert fusion.outcome() == {"snapshots": 2, "kept": True}
    fusion = always(collect=LastEpochs(2), monitor="norm", mode="max")
    fit(tmp_path, fusion, module=Normed())
    result = fusion.outcome()
    assert result["metric_fused"] != result["metric_before"] and result["kept"] is True


def test_greedy_soup_in_a_run(tmp_path, capsys):
    spy = Epochs()
    fusion = WeightFusion(
        method=GreedySoup(), collect=LastEpochs(3), monitor="norm", mode="min", update_batchnorm=False
    )
    module, _ = fit(tmp_path, spy, fusion, module=Normed())
    norms = {
        members: sum(
            mean([spy.ends[i] for i in members])[n].square().sum() for n, _ in module.named_parameters()
        )
        for members in [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
    }
    order = sorted(range(3), key=lambda i: norms[(i,)])
    soup = (order[0],)
    for index in order[1:]:
        tried = tuple(sorted((*soup, index)))
        soup = tried if norms[tried] <= norms[soup] else soup
    assert_equal(weights(module), mean([spy.ends[i] for i in soup]))
    assert capsys.readouterr().out.count("weight_fusion: norm of a candidate is") == 5
    assert fusion.outcome()["taken"] == len(soup)


def test_a_soup_may_have_a_metric_of_its_own(tmp_path):
    spy = Epochs()
    soup = GreedySoup("norm", mode="max")
    module, _ = fit(tmp_path, spy, always(method=soup, collect=LastEpochs(3)), module=Normed())
    largest = max(spy.ends, key=lambda w: sum(w[n].square().sum() for n, _ in module.named_parameters()))
    assert_equal(weights(module), largest)


def test_interpolation_and_weights_take_the_oldest_first(tmp_path):
    for method, shares in ((Interpolate(0.25), (0.25, 0.75)), (Average((1.0, 0.0)), (1.0, 0.0))):
        spy = Epochs()
        module, _ = fit(tmp_path, spy, always(method=method, collect=LastEpochs(2)))
        wanted = [
            shares[0] * a + shares[1] * b for a, b in zip(*(e.values() for e in spy.ends[-2:]), strict=True)
        ]
        for got, want in zip(weights(module).values(), wanted, strict=True):
            if got.is_floating_point():
                torch.testing.assert_close(got, want)


def test_results_go_to_the_loggers_and_nothing_else_is_seen(tmp_path, capsys):
    logger = CSVLogger(tmp_path)
    fusion = WeightFusion(collect=LastEpochs(3), monitor="norm", mode="max")
    seen = []
    real = WeightFusion.finish

    def finish(self, trainer, pl_module):
        seen.append(visible(trainer, pl_module))
        real(self, trainer, pl_module)
        seen.append(visible(trainer, pl_module))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WeightFusion, "finish", finish)
        fit(tmp_path, fusion, module=Normed(), logger=logger)
    assert not fusion.outcome()["kept"]
    assert_equal(*seen)
    rows = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    last = dict(zip(rows[0].split(","), rows[-1].split(","), strict=True))
    assert float(last["weight_fusion/snapshots"]) == 3.0
    assert float(last["weight_fusion/metric_fused"]) == pytest.approx(fusion.outcome()["metric_fused"])
    assert float(last["weight_fusion/kept"]) == float(fusion.outcome()["kept"])
    assert last["step"] == "15"
    assert "WeightFusion: snapshots 3, metric_before" in capsys.readouterr().out


def test_a_label_prefixes_what_it_tells(tmp_path, capsys):
    fit(tmp_path, always(collect=LastEpochs(1), label="mine"))
    assert "WeightFusion[mine]: snapshots 1" in capsys.readouterr().out
