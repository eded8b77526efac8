"""WeightFusion after fit: what comes back, what goes on, and the file that it leaves."""

from __future__ import annotations

import pytest
import torch

from lightning_tricks.averaging.ema import EMAWeights
from lightning_tricks.core.collect import BestK, LastEpochs
from lightning_tricks.fusion.average import Average
from lightning_tricks.fusion.provenance import provenance
from lightning_tricks.lifecycle.files import load
from lightning_tricks.lifecycle.technique import Technique
from tests.fusion.runs import Epochs, HalfAverage, Normed, always, fit, loaders, mean, state_of
from tests.toys import Loader, Toy, assert_equal, trainer, weights


def test_a_second_fit_takes_the_live_weights_back_and_collects_on(tmp_path):
    spy, plain = Epochs(), Epochs()
    for fusion, watcher in ((None, plain), (always(collect=LastEpochs(9)), spy)):
        module = Toy()
        runner = trainer(watcher, *([fusion] if fusion else []), default_root_dir=tmp_path)
        for epochs in (2, 4):
            runner.fit_loop.max_epochs = epochs
            runner.fit(module, *loaders())
    assert_equal(spy.steps, plain.steps)
    assert_equal(weights(module), mean(plain.ends))
    assert fusion.outcome()["snapshots"] == 4
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("*.ckpt")) == [
        "fused-v1.ckpt",
        "fused.ckpt",
    ]


def test_another_trainer_is_another_run(tmp_path):
    fusion, spy = always(collect=LastEpochs(9)), Epochs()
    fit(tmp_path, fusion)
    module, _ = fit(tmp_path, fusion, spy, max_epochs=2)
    assert_equal(weights(module), mean(spy.ends))


@pytest.mark.parametrize("average", [False, True])
def test_after_an_average_the_average_comes_back_first_and_then_the_live_weights(average, tmp_path):
    plain = Epochs()
    others = [HalfAverage()] if average else []
    module, runner = fit(tmp_path / "a", *others, always(collect=LastEpochs(2)), max_epochs=2)
    fit(tmp_path / "b", plain, max_epochs=2)
    spy = Epochs()

    class Start(Epochs):
        def on_train_start(self, trainer, pl_module):
            spy.ends.append(weights(pl_module))

    runner.callbacks.append(Start())
    runner.fit_loop.max_epochs = 3
    runner.fit(module, *loaders())
    assert_equal(spy.ends[0], plain.ends[-1])


def test_evaluation_after_fit_sees_the_fused_weights_and_counts_for_nothing(tmp_path):
    module, runner = fit(tmp_path, always(collect=BestK(3), monitor="val_loss", mode="min"))
    fused = weights(module)
    before = state_of(runner, tmp_path)
    loader = Loader(2, seed=9, fixed=True)
    for call in (runner.validate, runner.test):
        call(module, loader, verbose=False)
    runner.predict(module, loader)
    assert_equal(weights(module), fused)
    assert_equal(state_of(runner, tmp_path), before)


def test_a_checkpoint_saved_after_fit_goes_on_from_the_live_weights(tmp_path):
    plain, spy = Epochs(), Epochs()
    fit(tmp_path / "plain", plain, max_epochs=4)
    module, runner = fit(tmp_path, always(collect=LastEpochs(2)), max_epochs=2)
    runner.save_checkpoint(tmp_path / "after.ckpt")
    saved = torch.load(tmp_path / "after.ckpt", weights_only=True)
    assert_equal(dict(saved["state_dict"]), weights(module))
    fit(tmp_path, always(collect=LastEpochs(2)), spy, ckpt_path=tmp_path / "after.ckpt", max_epochs=4)
    assert_equal(spy.steps, plain.steps[10:])


@pytest.mark.parametrize("average", [HalfAverage, EMAWeights])
@pytest.mark.parametrize("average_first", [True, False])
def test_a_checkpoint_saved_after_fit_beside_an_average_does_so_too(average, average_first, tmp_path):
    def pair() -> list[Technique]:
        both = [average(), always(collect=LastEpochs(2))]
        return both if average_first else both[::-1]

    plain, spy = Epochs(), Epochs()
    fit(tmp_path / "plain", plain, max_epochs=4)
    _, runner = fit(tmp_path, *pair(), max_epochs=2)
    runner.save_checkpoint(tmp_path / "after.ckpt")
    fit(tmp_path, *pair(), spy, ckpt_path=tmp_path / "after.ckpt", max_epochs=4)
    assert_equal(spy.steps, plain.steps[10:])


def test_a_fit_of_another_module_leaves_the_fused_one_alone(tmp_path):
    module, runner = fit(tmp_path, always(collect=LastEpochs(2)), max_epochs=2)
    fused = weights(module)
    runner.fit_loop.max_epochs = 3
    runner.fit(Toy(), *loaders())
    assert_equal(weights(module), fused)


class Named(Normed):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()


def test_fused_ckpt_is_an_ordinary_checkpoint_of_weights(tmp_path):
    fusion = always(collect=LastEpochs(2), monitor="norm", mode="min")
    module, _ = fit(tmp_path, fusion, module=Named(width=5))
    path = tmp_path / "checkpoints" / "fused.ckpt"
    again = Named.load_from_checkpoint(path)
    assert_equal(weights(again), weights(module))
    assert again.hparams.width == 5
    content = torch.load(path, weights_only=True)
    assert "optimizer_states" not in content
    about = content["weight_fusion"]
    assert about["snapshots"] == 2
    files = sorted(path.with_name("snapshots").iterdir())
    models = [{"name": file.name, "size": file.stat().st_size} for file in files]
    assert content["fusion"] == provenance(Average(), models, {})
    assert about["method"] == "Average(weights=None)" and about["collect"] == "LastEpochs(k=2)"
    assert about["metric_fused"] == fusion.outcome()["metric_fused"] and about["kept"] is True
    (result,) = trainer().validate(Named(), Loader(2, seed=9, fixed=True), ckpt_path=path, verbose=False)
    assert result["norm"] == pytest.approx(fusion.outcome()["metric_fused"])


def test_snapshots_hold_tensors_only(tmp_path):
    spy = Epochs()
    fit(tmp_path, spy, always(collect=LastEpochs(2)))
    paths = sorted((tmp_path / "checkpoints" / "snapshots").iterdir())
    for path, wanted in zip(paths, spy.ends[1:], strict=True):
        assert_equal(load(path), wanted)


def test_the_fused_file_leaves_out_what_the_modules_own_hook_leaves_out(tmp_path):
    class Slim(Toy):
        def on_save_checkpoint(self, checkpoint):
            kept = {k: torch.zeros_like(v) for k, v in checkpoint["state_dict"].items() if "head" in k}
            checkpoint["state_dict"] = kept

    module, _ = fit(tmp_path, always(collect=LastEpochs(2)), module=Slim())
    content = load(tmp_path / "checkpoints" / "fused.ckpt")
    assert_equal(content["state_dict"], {k: v for k, v in weights(module).items() if "head" in k})


def user_weights(module: Toy) -> dict[str, torch.Tensor]:
    """Put other weights into ``module``, as a user does between two fits, and return them."""
    with torch.no_grad():
        other = {name: value + 1 for name, value in weights(module).items()}
    module.load_state_dict(other)
    return other


class AtStart(Epochs):
    def on_train_start(self, trainer, pl_module) -> None:
        self.ends.append(weights(pl_module))


def test_weights_that_the_user_loads_between_two_fits_are_not_overwritten(tmp_path, capsys):
    spy = AtStart()
    module, runner = fit(tmp_path, always(collect=LastEpochs(2)), max_epochs=2)
    other = user_weights(module)
    runner.callbacks.append(spy)
    runner.fit_loop.max_epochs = 3
    capsys.readouterr()
    runner.fit(module, *loaders())
    assert_equal(spy.ends[0], other)
    lines = [line for line in capsys.readouterr().out.splitlines() if "other weights" in line]
    assert lines == [
        "WeightFusion: the module holds other weights than the fused ones, so it starts from them "
        "and not from those of before"
    ]


def test_buffers_that_the_user_changes_between_two_fits_do_not_count(tmp_path, capsys):
    spy, plain = AtStart(), Epochs()
    fit(tmp_path / "plain", plain, max_epochs=2)
    module, runner = fit(tmp_path, always(collect=LastEpochs(2)), max_epochs=2)
    module.body[1].running_mean.zero_()
    runner.callbacks.append(spy)
    runner.fit_loop.max_epochs = 3
    runner.fit(module, *loaders())
    assert_equal(spy.ends[0], plain.ends[-1])
    assert "other weights" not in capsys.readouterr().out


def test_a_checkpoint_of_weights_that_the_user_has_loaded_goes_on_from_them(tmp_path):
    spy = AtStart()
    module, runner = fit(tmp_path, always(collect=LastEpochs(2)), max_epochs=2)
    other = user_weights(module)
    runner.save_checkpoint(tmp_path / "after.ckpt")
    again = always(collect=LastEpochs(2))
    fit(tmp_path, again, spy, ckpt_path=tmp_path / "after.ckpt")
    assert_equal(spy.ends[0], other)
