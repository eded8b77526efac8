"""WeightFusion: what it refuses and when, what it leaves alone, and how it is written down."""

from __future__ import annotations

import pickle
import warnings

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy

from lightning_tricks.core.collect import BestK, EverySteps, LastEpochs
from lightning_tricks.core.conflicts import ConflictError
from lightning_tricks.fusion.average import Average
from lightning_tricks.fusion.fusion import WeightFusion
from lightning_tricks.fusion.greedy_soup import GreedySoup
from lightning_tricks.fusion.interpolate import Interpolate
from tests.fusion.runs import Epochs, Normed, always, fit, loaders
from tests.toys import Toy, assert_equal, trainer, weights


def refused(root, fusion, match, *others, error=ValueError, **settings) -> None:
    """Assert that a run with ``fusion`` ends before its first batch."""
    spy = Epochs()
    with pytest.raises(error, match=match):
        fit(root, fusion, spy, *others, **settings)
    assert spy.steps == []


@pytest.mark.parametrize(
    ("fusion", "match"),
    [
        (lambda: WeightFusion(), "monitor must name a validation metric, got None, .* keep='always'"),
        (lambda: WeightFusion(monitor="norm"), "mode must be 'min' or 'max' for monitor 'norm', got None"),
        (lambda: always(collect=BestK(2)), "monitor must name a validation metric, got None"),
        (lambda: always(method=GreedySoup()), "monitor must name a validation metric, got None"),
        (lambda: always(method=GreedySoup("norm")), "mode must be 'min' or 'max' for monitor 'norm'"),
        (
            lambda: always(method=GreedySoup("norm"), monitor="val_loss", mode="min"),
            "mode must be 'min' or 'max' for monitor 'norm'",
        ),
        (lambda: always(source="average"), "source must be 'live' where no technique averages weights for"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_batch(fusion, match, tmp_path):
    refused(tmp_path, fusion(), match, module=Normed())


def test_without_validation_only_what_measures_nothing_is_right(tmp_path):
    match = "monitor must be measured by validation, got 'norm', but the run has none"
    for settings in ({"val": False}, {"limit_val_batches": 0}):
        for fusion in (
            WeightFusion(monitor="norm", mode="min"),
            always(collect=BestK(2), monitor="norm", mode="min"),
            always(method=GreedySoup("norm", "min")),
        ):
            refused(tmp_path, fusion, match, **settings)
        fit(tmp_path, always(), **settings)


def test_a_strategy_that_hides_weights_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(SingleDeviceStrategy, "restore_checkpoint_after_setup", True)
    match = "strategy must be DDP, FSDP or ModelParallelStrategy to reach all weights, got SingleDevice"
    refused(tmp_path, always(), match)


def test_a_remote_folder_is_refused():
    spy = Epochs()
    runner = trainer(always(), spy, default_root_dir="s3://bucket/run")
    with pytest.raises(ValueError, match="must be a local one"):
        runner.fit(Toy(), *loaders())
    assert spy.steps == []


def test_two_fusions_of_one_run_are_refused(tmp_path):
    match = "'final_weights' must have one owner, got WeightFusion"
    refused(tmp_path, always(label="a"), match, always(label="b"), error=ConflictError)


def test_lightnings_own_average_would_replace_what_is_fused_and_is_refused(tmp_path):
    match = "'final_weights' must have one owner, got EMAWeightAveraging and WeightFusion"
    refused(tmp_path, always(), match, EMAWeightAveraging(), error=ConflictError)


@pytest.mark.parametrize("settings", [{"monitor": "nrom"}, {"method": GreedySoup("nrom", "min")}])
@pytest.mark.parametrize(("sanity", "steps"), [(1, 0), (0, 5)])
def test_a_metric_that_is_not_logged_is_refused_at_the_first_validation(settings, sanity, steps, tmp_path):
    spy = Epochs()
    fusion = WeightFusion(**{"monitor": "norm", "mode": "min", **settings})
    with pytest.raises(ValueError, match="logged by validation, got 'nrom'; it logs 'val_loss', 'norm'"):
        fit(tmp_path, fusion, spy, module=Normed(), num_sanity_val_steps=sanity)
    assert len(spy.steps) == steps


@pytest.mark.parametrize("trial", ["fast_dev_run", "barebones"])
@pytest.mark.parametrize("fusion", [WeightFusion, lambda: always(method=GreedySoup(), collect=BestK(1))])
def test_a_trial_run_is_left_in_peace(trial, fusion, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours, plain = Toy(), Toy()
    for module, callbacks in ((plain, []), (ours, [fusion()])):
        barebones = {"max_epochs": 1, "default_root_dir": tmp_path, "log_every_n_steps": None}
        settings = {"barebones": True, **barebones} if trial == "barebones" else {"fast_dev_run": True}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You are trying to `self.log")
            runner = trainer(*callbacks, **{"enable_checkpointing": None, **settings})
            runner.fit(module, *loaders())
    assert_equal(weights(plain), weights(ours))
    assert "weight_fusion" not in capsys.readouterr().out
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_without_a_snapshot_it_says_so_and_leaves_the_weights(tmp_path):
    spy = Epochs()
    fusion = always(collect=EverySteps(99, k=2))
    early, told = (
        "will leave the weights",
        "left the weights as they are: .* collects 0 snapshots in .* Average",
    )
    with pytest.warns(UserWarning, match=early), pytest.warns(UserWarning, match=told):
        module, _ = fit(tmp_path, spy, fusion)
    assert_equal(weights(module), spy.ends[-1])
    assert fusion.outcome() == {"snapshots": 0, "kept": False}


@pytest.mark.parametrize("method", [Interpolate(0.5), Average((0.5, 0.5))])
def test_too_few_snapshots_for_the_method_leave_the_weights(method, tmp_path):
    spy = Epochs()
    fusion = always(method=method, collect=LastEpochs(2))
    early, told = "will leave the weights", r"left .* collects 1 snapshots in this run, but .* needs 2"
    with pytest.warns(UserWarning, match=early), pytest.warns(UserWarning, match=told):
        module, _ = fit(tmp_path, spy, fusion, max_epochs=1)
    assert_equal(weights(module), spy.ends[-1])


def test_weights_that_are_no_numbers_are_named_and_left(tmp_path):
    class Spoil(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == 7:
                pl_module.head.bias.data[1] = float("nan")

    module = Toy()
    runner = trainer(Spoil(), always(collect=LastEpochs(3)), default_root_dir=tmp_path)
    with pytest.raises(ValueError, match="must be finite in every model, but is not in model 1"):
        runner.fit(module, *loaders())
    assert module.head.bias.isnan().any()


def test_a_module_that_begins_without_numbers_is_refused_before_it_is_trained(tmp_path):
    module = Toy()
    module.register_buffer("gaps", torch.tensor([float("nan"), -torch.inf]))
    runner = trainer(always(collect=LastEpochs(3)), default_root_dir=tmp_path)
    with pytest.raises(ValueError, match="gaps must hold numbers for models to be fused, got NaN before"):
        runner.fit(module, *loaders())
    assert runner.global_step == 0
    module.gaps[0] = torch.inf
    trainer(always(collect=LastEpochs(3)), default_root_dir=tmp_path).fit(module, *loaders())


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        (
            {"method": Interpolate(0.5)},
            ValueError,
            r"collect must keep 2 snapshots .*, got LastEpochs\(k=5\)",
        ),
        ({"method": Average((0.5, 0.5)), "collect": BestK(3)}, ValueError, "collect must keep 2 snapshots"),
        (
            {"method": "average"},
            TypeError,
            r"^method must be a FusionMethod such as Average\(\), got 'average'$",
        ),
        ({"method": Average}, TypeError, r"such as Average\(\), got <class 'lightning_tricks"),
        ({"collect": 5}, TypeError, r"^collect must be a SnapshotPolicy such as LastEpochs\(5\), got 5$"),
        ({"source": "ema"}, ValueError, "source must be one of 'live', 'average', got 'ema'"),
        ({"mode": "low"}, ValueError, "mode must be one of 'min', 'max', got 'low'"),
        ({"keep": "best"}, ValueError, "keep must be one of 'better', 'always', got 'best'"),
        ({"update_batchnorm": 1}, TypeError, "unless 'better', must be True or False, got 1"),
        ({"every": 0.5}, TypeError, "every must be a whole number of steps or text such as"),
        ({"every": "0 epochs"}, ValueError, "every must be above 0, got '0 epochs'"),
        ({"curve": 2}, ValueError, "curve must be at least 3, got 2"),
        ({"curve": 3, "collect": BestK(1)}, ValueError, "collect must keep 2 snapshots or more for a curve"),
    ],
)
def test_wrong_settings_are_refused_at_once(settings, error, match):
    with pytest.raises(error, match=match):
        WeightFusion(**settings)


SETTINGS = [
    WeightFusion(),
    WeightFusion(method=Interpolate(0.25), collect=LastEpochs(2), source="average", keep="always"),
    WeightFusion(method=Average((0.25, 0.75)), collect=BestK(2), monitor="acc", mode="max"),
    WeightFusion(method=GreedySoup("acc", "max"), collect=EverySteps(n=50, k=3), update_batchnorm=False),
]


@pytest.mark.parametrize("fusion", SETTINGS)
def test_repr_and_pickle_rebuild_it(fusion):
    assert repr(eval(repr(fusion))) == repr(fusion)
    assert repr(pickle.loads(pickle.dumps(fusion))) == repr(fusion)


def test_yaml_builds_it(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(
        """
fusion:
  class_path: lightning_tricks.fusion.fusion.WeightFusion
  init_args:
    method:
      class_path: lightning_tricks.fusion.average.Average
      init_args: {weights: [0.25, 0.75]}
    collect:
      class_path: lightning_tricks.core.collect.EverySteps
      init_args: {n: 50, k: 2}
    monitor: acc
    mode: max
    keep: always
"""
    )
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_argument("--fusion", type=Callback)
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # its name before 4.49
    built = instantiate(parser.parse_args([f"--config={file}"])).fusion
    wanted = WeightFusion(
        method=Average((0.25, 0.75)), collect=EverySteps(50, 2), monitor="acc", mode="max", keep="always"
    )
    assert repr(built) == repr(wanted)


def test_defaults():
    assert WeightFusion().collect == LastEpochs(5) and WeightFusion().method == Average()


def test_a_model_checkpoint_that_monitors_nothing_is_no_help(tmp_path):
    refused(tmp_path, WeightFusion(), "no ModelCheckpoint monitors one", ModelCheckpoint(tmp_path / "mine"))
