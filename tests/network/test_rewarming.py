"""Rates that rise after a stage has opened: how, beside schedules, across interruptions, as logged."""

from __future__ import annotations

import csv

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger

import lightning_tricks as lt
from lightning_tricks.network.rewarming import rewarmed
from lightning_tricks.network.unfreeze import ProgressiveUnfreeze
from tests.network.deep import STAGES, Deep, Watch, fit
from tests.network.test_unfreeze_resume import Scheduled, state, stopped
from tests.toys import StopAfter, StopError, TwoOptimizers, assert_equal


class Rates(Callback):
    """Notes the rate of each group with which a batch is trained."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def on_before_optimizer_step(self, trainer, *_) -> None:
        self.seen.append([float(group["lr"]) for group in trainer.optimizers[0].param_groups])

    def of(self, group: int) -> list[float]:
        return [rates[group] for rates in self.seen]


def test_a_ramp_is_that_of_torchs_linear_warm_up():
    parameter = torch.zeros(1, requires_grad=True)
    for length in (1, 4, 9):
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        theirs = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / (length + 1), total_iters=length)
        for step in range(length + 3):
            assert rewarmed(step, length) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
            optimizer.step()
            theirs.step()
    assert rewarmed(0, 0) == 1.0


@pytest.mark.parametrize("warmup", [3, "20%", "0.6 epochs"])
@pytest.mark.parametrize("factor", [1, 0.5])
def test_the_rate_of_a_stage_rises_from_its_opening_on(warmup, factor):
    rates = Rates()
    fit(Deep(lr=0.8), ProgressiveUnfreeze(stages=STAGES, warmup=warmup, lr_factor=factor), rates)
    waits, rises = [0.25] * 5, [0.25, 0.5, 0.75] + [1.0] * 7
    assert rates.of(0) == [0.8] * 15
    assert rates.of(1) == pytest.approx([0.8 * factor * share for share in waits + rises])
    assert rates.of(2) == pytest.approx([0.8 * factor**2 * share for share in waits * 2 + rises[:5]])


def test_it_multiplies_with_a_schedule_and_a_decay():
    watch, rates = Watch(), Rates()
    techniques = [
        ProgressiveUnfreeze(stages=STAGES, warmup=3, lr_factor=1),
        lt.LearningRate(schedule="linear(to=0.1)"),
        lt.PlateauDecay(monitor="val_loss", patience=1, min_delta=100.0, factor=0.5),
    ]
    for order in (techniques, techniques[::-1]):
        rates = Rates()
        fit(Deep(lr=0.8), *order, rates, watch)
        shared = [0.8 * (1 - 0.9 * step / 15) * 0.5 ** max(0, step // 5 - 1) for step in range(15)]
        ramp = [0.25] * 5 + [0.25, 0.5, 0.75] + [1.0] * 7
        assert rates.of(0) == pytest.approx(shared)
        assert rates.of(1) == pytest.approx([rate * share for rate, share in zip(shared, ramp, strict=True)])


RUNS = {
    "steps": lambda: [ProgressiveUnfreeze(stages=STAGES, at=3, warmup=4)],
    "schedule": lambda: [
        lt.WarmupCosine(warmup="20%"),
        ProgressiveUnfreeze(stages=STAGES, at="0.4 epochs", warmup="0.8 epochs"),
    ],
    "one rate": lambda: [ProgressiveUnfreeze(stages=STAGES, at=["1 epoch", 5], warmup="30%", lr_factor=1)],
}


@pytest.mark.parametrize("run", RUNS)
def test_resumed_at_every_batch_in_the_middle_of_ramps(run, tmp_path):
    rates = Rates()
    whole = state(fit(Deep(), *RUNS[run](), rates, max_epochs=2), tmp_path / "whole.ckpt")
    assert len(set(rates.of(1))) > 3
    for stop in range(2, 10):
        saved = stopped(tmp_path, stop, Deep, *RUNS[run](), max_epochs=2)
        rest = Rates()
        runner = fit(Deep(), *RUNS[run](), rest, ckpt_path=saved, max_epochs=2)
        assert rest.seen == rates.seen[stop:]
        assert_equal(whole, state(runner, tmp_path / "parts.ckpt"))


def test_a_stage_that_was_due_when_the_run_was_stopped_still_gets_its_ramp(tmp_path):
    def run(*callbacks, **settings):
        stall = lt.Plateau("val_loss", patience=1, min_delta=100.0)
        rates = Rates()
        fit(Deep(), ProgressiveUnfreeze(stages=STAGES, at=stall, warmup=3), rates, *callbacks, **settings)
        return rates

    whole = run(max_epochs=4)
    with pytest.raises(StopError):
        run(StopAfter(2, tmp_path / "stop.ckpt", "on_validation_end"), max_epochs=4)
    assert run(ckpt_path=tmp_path / "stop.ckpt", max_epochs=4).seen == whole.seen[10:]


def test_a_ramp_that_has_begun_keeps_its_length_in_a_longer_run(tmp_path):
    def unfreeze():
        return ProgressiveUnfreeze(stages=STAGES, at=[2, 12], warmup="40%")

    saved = stopped(tmp_path, 4, Deep, unfreeze())
    rates = Rates()
    fit(Deep(lr=1.0), unfreeze(), rates, ckpt_path=saved, max_epochs=6)
    share = [rate * 2.6 / rates.of(0)[0] for rate in rates.of(1)]
    assert share[:6] == pytest.approx([3 / 7, 4 / 7, 5 / 7, 6 / 7, 1, 1])  # 40% of 15 are 6
    last = [rate * 2.6**2 / rates.of(0)[0] for rate in rates.of(2)]
    assert last[:10] == pytest.approx([1 / 13] * 9 + [2 / 13])  # 40% of 30 are 12


def test_what_is_open_from_the_start_needs_none():
    rates = Rates()
    fit(Deep(lr=0.8), ProgressiveUnfreeze(stages=STAGES, at=[0, 10], lr_factor=1, warmup=3), rates)
    assert rates.of(1) == [0.8] * 15


def test_manual_optimization_counts_its_steps():
    rates = []

    class Note(Callback):
        def on_train_batch_start(self, trainer, *_):
            rates.append([group["lr"] for o in trainer.optimizers for group in o.param_groups])

    fit(TwoOptimizers(), ProgressiveUnfreeze(stages=["head", "body"], at=2, warmup=1, lr_factor=1), Note())
    assert [body for body, _ in rates] == pytest.approx([0.025] * 2 + [0.025] + [0.05] * 12)


@pytest.mark.parametrize("first", [True, False])
def test_the_monitor_of_lightning_shows_the_ramp(first, tmp_path):
    monitor, unfreeze = LearningRateMonitor(), ProgressiveUnfreeze(stages=STAGES, warmup=3, lr_factor=0.5)
    order = [monitor, unfreeze] if first else [unfreeze, monitor]
    logger = CSVLogger(tmp_path)
    rates = Rates()
    fit(Deep(lr=0.8), *order, rates, logger=logger)
    logger.experiment.save()
    with open(logger.experiment.metrics_file_path) as file:
        logged = [float(row["lr-AdamW/pg2"]) for row in csv.DictReader(file) if row["lr-AdamW/pg2"]]
    assert logged == pytest.approx(rates.of(1))


def test_what_it_cannot_go_with_is_refused():
    with pytest.raises(
        lt.ConflictError, match="'lr_warmup' must have one owner, got the scheduler of Scheduled"
    ):
        fit(Scheduled(), ProgressiveUnfreeze(stages=STAGES, lr_factor=1, warmup=3))
    with pytest.raises(ValueError, match="warmup must be a whole number of steps or text"):
        ProgressiveUnfreeze(stages=STAGES, warmup="soon")
    with pytest.raises(ValueError, match="lr_factor must be 1, and warmup 0, with LBFGS"):
        fit(Deep(optimizer="LBFGS"), ProgressiveUnfreeze(stages=STAGES, lr_factor=1, warmup=3))
    watch = Watch()
    with pytest.raises(ValueError, match="warmup must be in steps, or max_steps be set, .* got '2%'"):
        fit(Deep(), ProgressiveUnfreeze(stages=STAGES, at=2, warmup="2%"), watch, max_epochs=-1)
    assert watch.open == []


def test_resumed_with_or_without_it_is_refused_where_groups_would_differ(tmp_path):
    for before, after in ((0, 3), (3, 0)):
        settings = {"stages": STAGES, "lr_factor": 1}
        saved = stopped(tmp_path, 4, Deep, ProgressiveUnfreeze(**settings, warmup=before))
        with pytest.raises(ValueError, match="be above 0 where lr_factor is 1, as in the checkpoint"):
            fit(Deep(), ProgressiveUnfreeze(**settings, warmup=after), ckpt_path=saved)
