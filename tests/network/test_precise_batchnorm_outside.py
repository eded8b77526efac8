"""BatchNorm statistics in evaluations outside of fit: those of the weights that are evaluated."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

import lightning_tricks as lt
from tests.lifecycle.passes import visible
from tests.network.test_precise_batchnorm import Fixed, check, parameters
from tests.toys import Loader, StopAfter, StopError, Toy, TwoOptimizers, assert_equal, trainer, weights

BATCHES = list(Fixed())
EVALUATIONS = ("validate", "test", "predict")


def evaluation() -> Loader:
    return Loader(2, seed=9, fixed=True)


class Fed(Toy):
    """Brings its training data along, and counts how often it is asked for them."""

    asked = 0

    def train_dataloader(self) -> Any:
        self.asked += 1
        return Fixed()


class FedByHand(Fed, TwoOptimizers):
    """The same with two optimizers, one of which has a schedule, stepped by itself."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        body, head = self.optimizers()
        assert self.trainer.training and self.trainer.num_training_batches == 5
        self.log("rate", self.trainer.optimizers[0].param_groups[0]["lr"])
        body.zero_grad()
        x = batch[0].clone().requires_grad_()
        loss = self.loss((x, batch[1]))
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        self.manual_backward(loss + slope.square().sum())
        body.step()
        head.step()
        self.lr_schedulers().step()

    def configure_optimizers(self) -> Any:
        optimizers = super().configure_optimizers()
        total = self.trainer.estimated_stepping_batches
        return optimizers, [torch.optim.lr_scheduler.OneCycleLR(optimizers[0], 0.1, total)]


class Looks(Callback):
    """Asserts at each evaluated batch that the statistics are those of the weights over ``batches``."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches, self.count = batches, 0

    def on_test_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        check(pl_module, self.batches)
        self.count += 1

    on_validation_batch_start = on_predict_batch_start = on_test_batch_start


def between(path: Path, *callbacks: Callback, module: Toy | None = None, train: Any = None) -> Path:
    """Return a checkpoint that was written between the first and the second validation."""
    runner = trainer(*(callbacks or (lt.PreciseBatchNorm(),)), StopAfter(8, path))
    with pytest.raises(StopError):
        runner.fit(module or Toy(), train or Fixed(), evaluation())
    return path


@pytest.mark.parametrize("kind", [Fed, FedByHand])
@pytest.mark.parametrize("how", EVALUATIONS)
def test_statistics_are_those_of_the_evaluated_weights(how, kind, tmp_path):
    path, module, looks = between(tmp_path / "a.ckpt"), kind(), Looks(BATCHES[:3])
    loaded = torch.load(path, weights_only=True)["state_dict"]
    technique = lt.PreciseBatchNorm(batches=3)
    getattr(trainer(technique, looks, max_epochs=None), how)(module, evaluation(), ckpt_path=path)
    assert (looks.count, technique.outcome(), module.asked) == (2, {"estimates": 1}, 1)
    others = {name: value for name, value in weights(module).items() if "body.1." not in name}
    assert_equal(others, {name: loaded[name] for name in others})
    assert torch.equal(module.body[1].weight, loaded["body.1.weight"])


def test_weights_and_statistics_that_came_another_way_are_not_taken_for_precise(tmp_path):
    module = Fed.load_from_checkpoint(between(tmp_path / "a.ckpt"))
    runner = trainer(lt.PreciseBatchNorm(), looks := Looks(BATCHES))
    runner.test(module, evaluation(), verbose=False)
    for tensor in (module.body[0].weight, module.body[1].running_mean):
        with torch.no_grad():
            tensor += 1.0
        runner.test(module, evaluation(), verbose=False)
    runner = trainer(lt.PreciseBatchNorm(), looks)
    runner.test(module.eval(), evaluation(), verbose=False)
    assert (looks.count, module.asked) == (8, 4)
    assert not any(part.training for part in module.modules())


class Ears(Callback):
    """Notes all that a pass could disturb, before it and after it, and the batches that follow."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_test_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        loop, strategy = trainer.fit_loop, trainer.strategy
        own = {key: value for key, value in vars(trainer).items() if key != "callbacks"}
        fit = {id(owner): {k: id(v) for k, v in vars(owner).items()} for owner in (loop, strategy)}
        shown = {**visible(trainer, pl_module), "fit": fit, "trainer": {k: id(v) for k, v in own.items()}}
        self.seen.append(shown | {"state": repr(trainer.state), "length": loop.max_batches})

    def on_test_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:
        self.seen.append(batch)


class Drawn(FedByHand):
    """Draws from generators of its own and of the one loader that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.dice = torch.Generator().manual_seed(5)
        self.data = [DataLoader(BATCHES, None, shuffle=True, generator=torch.Generator().manual_seed(6))]
        self.register_buffer("queue", torch.zeros(2))

    def train_dataloader(self) -> Any:
        torch.rand(3 + int(torch.randint(3, ())), generator=self.dice)
        return self.data[0]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        super().training_step(batch, batch_idx)
        self.queue += 1.0


@pytest.mark.filterwarnings("ignore:.*sampler has shuffling enabled:UserWarning")
def test_nothing_else_changes(tmp_path):
    path, first, last = between(tmp_path / "a.ckpt"), Ears(), Ears()
    module = Drawn()
    data = DataLoader(BATCHES, batch_size=None, shuffle=True)
    dice = [module.dice, module.data[0].generator]
    states = [each.get_state() for each in dice]
    torch.manual_seed(3)
    plain = trainer(alone := Ears())
    plain.test(copy.deepcopy(module), data, verbose=False)
    torch.manual_seed(3)
    runner = trainer(first, lt.PreciseBatchNorm(), last)
    module.load_state_dict(torch.load(path, weights_only=True)["state_dict"], strict=False)
    runner.test(module, data, verbose=False)
    check(module, BATCHES)
    before, after = first.seen[0], last.seen[0]
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert before["weights"].pop(f"body.1.{name}") is not None
        del after["weights"][f"body.1.{name}"]
    assert_equal(before, after)
    assert_equal([each.get_state() for each in dice], states)
    assert_equal(alone.seen[1:], last.seen[1:])  # the same batches in the same order


def test_precise_statistics_are_not_estimated_again(tmp_path):
    module, saver = Fed(), ModelCheckpoint(tmp_path, monitor="val_loss", save_last=True)
    technique = lt.PreciseBatchNorm()
    runner = trainer(technique, saver)
    runner.fit(module, val_dataloaders=evaluation())
    for how in EVALUATIONS:
        getattr(runner, how)(module, evaluation())
    assert (module.asked, technique.outcome()["estimates"]) == (1, 4)
    for path in (saver.best_model_path, saver.last_model_path):
        fresh = Fed()
        other = ModelCheckpoint(tmp_path, monitor="val_loss")
        trainer(lt.PreciseBatchNorm(), other).test(fresh, evaluation(), ckpt_path=path, verbose=False)
        assert fresh.asked == 0
        check(fresh, BATCHES)


@pytest.mark.parametrize("save", ["average", "live"])
@pytest.mark.parametrize("buffers", ["copy", "average"])
def test_with_an_average_they_are_those_of_the_average(buffers, save, tmp_path):
    def techniques() -> list[Any]:
        return [lt.PreciseBatchNorm(), lt.EMAWeights(decay=0.5, buffers=buffers, save=save)]

    path, module = between(tmp_path / "a.ckpt", *techniques()), Fed()
    trainer(*techniques(), looks := Looks(BATCHES)).test(module, evaluation(), ckpt_path=path, verbose=False)
    assert looks.count == 2
    average = lt.average_state(path)
    assert_equal(parameters(module), {name: average[name] for name in parameters(module)})


def test_live_weights_get_theirs_and_the_average_keeps_its_own():
    module, ema = Fed(), lt.EMAWeights(decay=0.5)
    runner = trainer(lt.PreciseBatchNorm(), ema, looks := Looks(BATCHES))
    runner.fit(module, val_dataloaders=evaluation())
    held, looks.count = weights(module), 0
    with ema.live_weights():
        runner.test(module, evaluation(), verbose=False)
    assert looks.count == 2
    assert_equal(weights(module), held)


class Broken(FedByHand):
    def configure_optimizers(self) -> Any:
        raise RuntimeError("no length")


def test_an_error_in_the_pass_is_an_error_that_leaves_all_as_it_was(tmp_path):
    path, module = between(tmp_path / "a.ckpt"), Broken()
    runner = trainer(lt.PreciseBatchNorm())
    with pytest.raises(ValueError, match="unpack") as caught:
        runner.test(module, evaluation(), ckpt_path=path, verbose=False)
    notes = "\n".join(caught.value.__notes__)
    for told in ("training_step was only looked at", "configure_optimizers raised", "in PreciseBatchNorm"):
        assert told in notes
    assert_equal(weights(module), dict(torch.load(path, weights_only=True)["state_dict"]))


class Second(Toy):
    """A second norm, which fine-tuning froze."""

    def __init__(self) -> None:
        super().__init__()
        self.body.append(nn.BatchNorm1d(8))
        self.body[4].running_mean.fill_(0.25)


class FedSecond(Second, Fed):
    pass


@pytest.mark.parametrize("frozen", ["body.4", "body"])
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks:UserWarning")
def test_layers_that_training_kept_in_eval_mode_keep_theirs(frozen, tmp_path):
    freeze, module = lt.Freeze(params=frozen, at=6), FedSecond()
    path = between(tmp_path / "a.ckpt", lt.PreciseBatchNorm(), freeze, module=Second())
    loaded = torch.load(path, weights_only=True)["state_dict"]
    trainer(lt.PreciseBatchNorm()).test(module, evaluation(), ckpt_path=path, verbose=False)
    assert torch.equal(module.body[4].running_mean, loaded["body.4.running_mean"])
    if frozen == "body":
        assert_equal(weights(module), dict(loaded))
    else:
        check(module, BATCHES)
