"""One trial: the same start and order whatever draws in between, the metric of the weights that are left."""

from __future__ import annotations

import math
import time

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tricks import EMAWeights
from lightning_tricks.study.cost import Cost
from lightning_tricks.study.trial import Setup, StudyError, rehearse, run_trial
from tests.study.small import QUIET, build
from tests.toys import Loader, Toy, trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*smaller than the logging interval")


class Drawing(Callback):
    """Takes random numbers wherever it can."""

    def __init__(self):
        self.batches, self.first = [], None

    def on_fit_start(self, *_):
        torch.rand(3)

    def on_train_start(self, trainer, pl_module):
        torch.rand(5)
        self.first = pl_module.head.weight.detach().clone()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch[0][:, 0].tolist())
        if self.draws:
            torch.rand(7)


class Still(Drawing):
    draws = False


class Greedy(Drawing):
    draws = True


class Unseeded(Toy):
    """Takes the random states as it finds them."""

    def __init__(self):
        found = torch.get_rng_state()
        super().__init__()
        torch.set_rng_state(found)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss


def shuffled(seed):
    data = TensorDataset(torch.arange(48.0).reshape(12, 4), torch.arange(12) % 3)
    loaders = DataLoader(data, 3, shuffle=True), DataLoader(data, 12)
    return Unseeded(), loaders, dict(QUIET)


def test_one_seed_is_one_start_and_one_order_whatever_is_drawn():
    seen = []
    for callback, seed in ((Still(), 5), (Greedy(), 5), (Still(), 6)):
        before = torch.get_rng_state()
        run_trial(shuffled, [callback], seed=seed, metric="val_loss")
        assert torch.equal(torch.get_rng_state(), before)  # of whoever calls, nothing is changed
        seen.append(callback)
    still, greedy, other = seen
    assert torch.equal(still.first, greedy.first)
    assert still.batches == greedy.batches
    assert len(still.batches) == 8
    assert still.batches[:4] != still.batches[4:]  # epochs differ
    assert still.batches != other.batches
    assert not torch.equal(still.first, other.first)


def test_the_metric_is_that_of_the_weights_that_are_left():
    module, loaders, settings = build(1)
    run = trainer(EMAWeights(decay=0.5), **settings)
    run.fit(module, *loaders)
    (expected,) = run.validate(module, loaders[1], verbose=False)
    found = run_trial(build, [EMAWeights(decay=0.5)], seed=1, metric="val_loss")
    assert found.value == expected["val_loss"] != run_trial(build, [], seed=1, metric="val_loss").value


class Last(Callback):
    """Leaves other weights than those that were validated last."""

    def on_train_end(self, trainer, pl_module):
        for parameter in pl_module.head.parameters():
            nn.init.zeros_(parameter)


def test_also_of_weights_that_are_made_after_the_last_epoch():
    found = run_trial(build, [Last()], seed=0, metric="val_loss")
    assert found.value == pytest.approx(math.log(3))  # all three classes are as likely


def test_a_metric_of_training_alone_will_do():
    def without_validation(seed):
        _, loaders, settings = build(seed)
        return Unseeded(), (loaders[0], None), settings

    found = run_trial(without_validation, [], seed=0, metric="train_loss")
    assert 0.0 < found.value < 3.0


def test_it_says_nothing_and_writes_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)

    def decorated(seed):
        module, loaders, settings = build(seed)
        callbacks = [RichProgressBar(), ModelCheckpoint(dirpath="kept"), EarlyStopping("val_loss")]
        return module, loaders, {**settings, "callbacks": callbacks}

    found = run_trial(decorated, [], seed=0, metric="val_loss")
    assert found.value == run_trial(build, [], seed=0, metric="val_loss").value
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("", "")
    assert not list(tmp_path.iterdir())


def test_a_metric_that_is_not_there_is_told_by_the_rehearsal():
    with pytest.raises(StudyError, match="metric must be one of .*'val_loss', got 'val_los'; did you mean"):
        rehearse(build, [], seed=0, metric="val_los")

    def endless(seed):
        module, _, settings = build(seed)
        return module, (Loader(10**6), Loader(10**6)), {**settings, "max_steps": 10**6}

    begin = time.monotonic()
    rehearse(endless, [], seed=0, metric="val_loss")
    assert time.monotonic() - begin < 30


def test_a_value_that_is_not_finite_is_no_result():
    def diverging(seed):
        return Toy(lr=math.inf, optimizer="SGD"), *build(seed)[1:]

    with pytest.raises(ValueError, match="val_loss was nan at the end of training"):
        run_trial(diverging, [], seed=0, metric="val_loss")


def test_several_processes_are_refused():
    def spread(seed):
        return *build(seed)[:2], {**QUIET, "devices": 2, "strategy": "ddp_spawn"}

    with pytest.raises(StudyError, match="devices must be 1 in a study, got 2 processes"):
        run_trial(spread, [], seed=0, metric="val_loss")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Toy, r"must return \(module, data, Trainer settings\)"),
        ((nn.Linear(1, 1), None, {}), "must return a LightningModule first"),
        ((Toy(), Loader(), {}), "must return a LightningDataModule or"),
        ((Toy(), (Loader(), Loader()), None), "must return a dict of Trainer settings third, got None"),
    ],
)
def test_a_factory_of_other_things_is_told(given, message):
    with pytest.raises(TypeError, match=message):
        Setup.of(given)


class Slow(Callback):
    """Takes time and memory in one place."""

    def __init__(self, hook, seconds=0.0, mebibytes=0):
        self.seconds, self.mebibytes = seconds, mebibytes
        setattr(self, hook, self.act)

    def act(self, *_):
        time.sleep(self.seconds)
        bytearray(self.mebibytes * 2**20)[::4096] = b"1" * (self.mebibytes * 256)


def test_time_and_memory_of_techniques_are_seen():
    def cost(*callbacks):
        return run_trial(build, callbacks, seed=0, metric="val_loss")

    cost()  # what the first one takes longer
    plain, slow = cost(), cost(Slow("on_train_batch_end", seconds=0.03))
    assert 30 < slow.step_ms < plain.step_ms + 100
    validation = cost(Slow("on_validation_batch_end", seconds=0.05))
    assert validation.step_ms < plain.step_ms + 30  # is no part of a step
    assert plain.device == "cpu"
    large = cost(Slow("on_train_batch_end", mebibytes=64))
    assert 50 < large.memory_mib - plain.memory_mib < 80


def test_steps_are_counted_within_epochs(monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 100.0, 102.0, 500.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    cost = Cost()
    for _ in range(3):
        cost.on_train_batch_start()
    cost.on_train_epoch_end(None, None)
    for _ in range(2):
        cost.on_train_batch_start()
    cost.on_validation_start(None, None)
    cost.on_train_batch_start()
    cost.on_train_epoch_end(None, None)
    assert cost.step_ms == 2000.0  # of 1, 2 and 2 seconds
