"""The numbers: which average EMAWeights keeps."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lightning_tricks.averaging.ema import EMAWeights
from tests.averaging.watching import differ, live_of, parameters, slow_twin, watched
from tests.host_reads import HostReads
from tests.toys import Loader, Toy, TwoOptimizers, assert_equal, scaler_plugin, trainer, weights


@pytest.mark.parametrize(
    ("settings", "decay"),
    [
        ({"decay": 0.9}, lambda position: 0.9),
        ({"decay": 0.9, "decay_warmup": False}, lambda position: 0.9),
        ({"decay": 0.97, "every": 3}, lambda position: 0.97),
        ({"decay": 0.97, "every": 7, "decay_warmup": False, "start": 20}, lambda position: 0.97),
        ({"decay": 0.9, "start": "1 epoch"}, lambda position: 0.9),
        ({"decay": "0.8 * linear(to=0.5)"}, lambda position: 0.8 * (1 - 0.5 * (position - 1) / 100)),
    ],
)
def test_average_is_the_slow_twins_over_100_steps(settings: dict[str, Any], decay: Any) -> None:
    ema = EMAWeights(**settings)
    module, watch, _ = watched(ema, precision="64-true", max_epochs=20)
    start = {0: 0, 20: 20, "1 epoch": 5}[ema.start]
    expected = slow_twin(watch.steps, decay, warmup=ema.decay_warmup, every=ema.every, start=start)
    assert len(watch.steps) == 101
    assert ema.outcome()["updates"] == 100 - start
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=0, atol=1e-13)


class TorchsOwn(Callback):
    """torch's AveragedModel beside a run."""

    def __init__(self, decay: float, use_buffers: bool) -> None:
        self.decay, self.use_buffers = decay, use_buffers

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        copy = Toy()
        copy.load_state_dict(pl_module.state_dict())
        average = get_ema_multi_avg_fn(self.decay)
        self.model = AveragedModel(copy, multi_avg_fn=average, use_buffers=self.use_buffers)
        self.model.n_averaged += 1  # begin with the weights as they are, not with those of the next step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.model.update_parameters(pl_module)


@pytest.mark.parametrize("buffers", ["copy", "average"])
def test_constant_decay_is_torchs_to_the_bit(buffers: str) -> None:
    torchs = TorchsOwn(0.95, buffers == "average")
    module, _, _ = watched(EMAWeights(decay=0.95, decay_warmup=False, buffers=buffers), None, torchs)
    theirs = torchs.model.module.state_dict()
    theirs["body.1.num_batches_tracked"] = torch.tensor(15)  # theirs is 6 by now
    assert_equal(weights(module), weights_of(theirs))


def weights_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in state.items()}


def test_training_itself_stays_as_it_is() -> None:
    plain = Toy()
    trainer().fit(plain, Loader(), Loader(2, seed=9))
    ema = EMAWeights(decay=0.9)
    module, _, _ = watched(ema)
    assert_equal(live_of(ema, module), weights(plain))
    assert differ(weights(module), weights(plain))


def test_only_optimizer_steps_count_under_accumulation() -> None:
    ema = EMAWeights(decay=0.9)
    module, watch, _ = watched(ema, accumulate_grad_batches=2)
    assert ema.outcome()["updates"] == 9  # 3 of 5 batches an epoch
    expected = slow_twin(watch.steps, lambda _: 0.9, warmup=True, every=1, start=0)
    torch.testing.assert_close(module.head.weight.detach(), expected["head.weight"])


def test_several_optimizers_in_a_batch_count_once_and_every_2_is_met() -> None:
    ema = EMAWeights(decay=0.9, every=2)
    module, watch, _ = watched(ema, TwoOptimizers())
    expected = slow_twin(watch.steps, lambda _: 0.9, warmup=True, every=2, start=0)
    assert ema.outcome()["updates"] == 15
    torch.testing.assert_close(module.head.weight.detach(), expected["head.weight"])


def growing_scaler() -> MixedPrecision:
    """Return a plugin whose scale grows until steps overflow, again and again."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_factor=64.0, growth_interval=3)
    return MixedPrecision("16-mixed", "cpu", scaler)


@pytest.mark.parametrize(("fused", "every"), [(False, 1), (False, 2), (True, 1)])
def test_a_step_that_the_scaler_skipped_counts_for_nothing(fused: bool, every: int) -> None:
    ema = EMAWeights(decay=0.9, every=every)
    module, watch, _ = watched(ema, Toy(fused=fused), plugins=[growing_scaler()], max_epochs=6)
    real = [watch.steps[0]]
    real += [
        b for a, b in zip(watch.steps, watch.steps[1:], strict=False) if differ(parameters(a), parameters(b))
    ]
    assert 10 < len(real) < 28
    assert not differ(parameters(watch.steps[-1]), parameters(real[-1]))
    assert ema.outcome()["updates"] == len(real) - 1
    expected = slow_twin(real, lambda _: 0.9, warmup=True, every=every, start=0)
    torch.testing.assert_close(module.head.weight.detach(), expected["head.weight"])


@pytest.mark.parametrize("settings", [{}, {"fused": True}])
@pytest.mark.parametrize("scaled", [False, True])
def test_no_host_read_on_steps_that_do_not_log(settings: dict[str, Any], scaled: bool) -> None:
    def reads(*callbacks: Callback) -> int:
        module, plugins = Toy(**settings), [scaler_plugin()] if scaled else []
        runner = trainer(*callbacks, plugins=plugins, log_every_n_steps=1000, max_epochs=1)
        with HostReads() as counter:
            runner.fit(module, Loader())
        return counter.count

    assert reads(EMAWeights(decay=0.9, every=2)) == reads()


def test_count_stays_on_the_device_where_only_the_device_knows_it() -> None:
    ema = EMAWeights(decay=0.9)
    watched(ema, Toy(fused=True), plugins=[scaler_plugin()])
    assert isinstance(ema.saved()["progress"]["updates"], Tensor)
    assert ema.outcome()["updates"] == 15


def test_decay_is_logged_when_the_average_moves(tmp_path: Any) -> None:
    logger = CSVLogger(tmp_path)
    watched(EMAWeights(decay=0.9, every=2, start=1), logger=logger, max_epochs=1)
    rows = csv.DictReader((Path(logger.log_dir) / "metrics.csv").read_text("utf-8").splitlines())
    logged = [float(row["ema_weights/decay"]) for row in rows if row["ema_weights/decay"]]
    # From the second step on: nothing, 1/10 2/11, the same, 3/12 4/13.
    assert logged == pytest.approx([2 / 110, 2 / 110, 1 / 13])


def test_distance_from_the_live_weights_is_logged_on_steps_that_log(tmp_path: Path) -> None:
    class Hand(Callback):
        expected: ClassVar[list[float]] = []

        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            average, live = (
                torch.cat([each.detach().flatten() for each in those])
                for those in (ema.average().values(), pl_module.parameters())
            )
            self.expected.append(float((average - live).norm() / live.norm()))

    logger, ema, hand = CSVLogger(tmp_path), EMAWeights(decay=0.9), Hand()
    watched(ema, None, hand, logger=logger, max_epochs=1, log_every_n_steps=2)
    rows = csv.DictReader((Path(logger.log_dir) / "metrics.csv").read_text("utf-8").splitlines())
    logged = [float(row["ema_weights/distance"]) for row in rows if row["ema_weights/distance"]]
    assert logged == pytest.approx(hand.expected[1::2], rel=1e-5)
    assert len(logged) == 2
