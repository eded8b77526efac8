"""The numbers: which mean SWAWeights keeps, along which rates, against torch's own parts in a plain loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim.swa_utils import SWALR, AveragedModel, get_swa_multi_avg_fn, update_bn

import lightning_tricks as lt
from tests.averaging.watching import Watch, live_of, parameters, watched
from tests.host_reads import HostReads
from tests.toys import (
    Loader,
    Logged,
    Stops,
    Toy,
    TwoOptimizers,
    assert_equal,
    scaler_plugin,
    trainer,
    weights,
)


def mean_of(steps: list[dict[str, Tensor]], moments: list[int]) -> dict[str, Tensor]:
    """The mean of the weights after these steps, in 64 bits."""
    chosen = [parameters(steps[moment]) for moment in moments]
    return {name: sum(each[name].double() for each in chosen) / len(chosen) for name in chosen[0]}


def near(first: dict[str, Tensor], second: dict[str, Tensor], **bounds: float) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name].double(), second[name].double(), **bounds)


MOMENTS: list[tuple[dict[str, Any], list[int]]] = [
    ({"start": 0, "every": 4}, [4, 8, 12]),
    ({"start": 8, "every": 4}, [8, 12]),
    ({"start": "1 epoch"}, [5, 10, 15]),
    ({"start": "1.2 epochs"}, [10, 15]),
    ({"start": "75%", "every": 1}, [11, 12, 13, 14, 15]),  # 11.25 is rounded to a step
    ({"start": "40%", "every": "20%"}, [6, 9, 12, 15]),
    ({"start": 7, "every": "0.5 epochs"}, [8, 10, 13, 15]),
    ({"start": "100%"}, [15]),
]


@pytest.mark.parametrize(("settings", "moments"), MOMENTS)
def test_mean_is_of_the_weights_at_each_multiple_from_start_on(
    settings: dict[str, Any], moments: list[int]
) -> None:
    swa = lt.SWAWeights(**settings)
    module, watch, _ = watched(swa)
    assert swa.outcome() == {"snapshots": len(moments)}
    near(parameters(weights(module)), mean_of(watch.steps, moments), rtol=1e-6, atol=1e-7)


class Hand:
    """The same run without Lightning: torch's averaged model, its scheduler, its update of BatchNorm."""

    def __init__(self, *, start: int, every: int, lr: float | None, anneal: int) -> None:
        self.module, self.rates = Toy(), []
        net = nn.Sequential(self.module.body, self.module.head)
        self.average: Any = AveragedModel(net, multi_avg_fn=get_swa_multi_avg_fn())
        optimizer = self.module.configure_optimizers()
        loader, scheduler, step = Loader(fixed=True), None, 0
        for epoch in range(3):
            for index, batch in enumerate(loader):
                torch.manual_seed(1000 * epoch + index)
                self.rates.append(optimizer.param_groups[0]["lr"])
                optimizer.zero_grad()
                self.module.loss(batch).backward()
                optimizer.step()
                step += 1
                if scheduler is not None:
                    scheduler.step()
                elif step == start and lr is not None:
                    scheduler = SWALR(optimizer, swa_lr=lr, anneal_epochs=anneal)
                if step >= start and step % every == 0:
                    self.average.update_parameters(net)
        update_bn(list(loader), self.average)


class Rates(Callback):
    """Notes the rate of each group at the start of each batch."""

    def __init__(self) -> None:
        self.rows: list[list[float]] = []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        self.rows.append([float(group["lr"]) for group in groups])


@pytest.mark.parametrize(("lr", "anneal"), [(None, 0), (0.2, 4), (0.01, 6)])
def test_a_run_is_that_of_torchs_parts(lr: float | None, anneal: int) -> None:
    hand = Hand(start=5, every=2, lr=lr, anneal=anneal)
    module, rates = Toy(), Rates()
    swa = lt.SWAWeights(start=5, every=2, lr=lr, anneal=anneal)
    trainer(swa, rates).fit(module, Loader(fixed=True), Loader(2, seed=9))
    assert [row[0] for row in rates.rows] == pytest.approx(hand.rates, rel=1e-12)
    theirs = hand.average.module.state_dict()
    ours = nn.Sequential(module.body, module.head).state_dict()
    exact = 0.0 if lr is None else 1e-6  # torch's closed form of the rate is rounded otherwise
    for name in dict(hand.average.module.named_parameters()):
        torch.testing.assert_close(ours[name], theirs[name], rtol=exact, atol=exact)
    torch.testing.assert_close(ours["0.1.running_mean"], theirs["0.1.running_mean"])
    # Theirs is the mean of unbiased variances of batches; ours that of all entries.
    seen = torch.cat([module.body[0](x) for x, _ in Loader(fixed=True)])
    torch.testing.assert_close(ours["0.1.running_var"], seen.var(0, correction=0))
    assert (ours["0.1.running_var"] - theirs["0.1.running_var"]).abs().max() < 0.2
    assert swa.outcome() == {"snapshots": hand.average.n_averaged}


def test_two_optimizers_by_hand_each_at_its_own_rate() -> None:
    rates, swa = Rates(), lt.SWAWeights(start="1 epoch", every=3, lr="50%", anneal=2)
    module, watch, _ = watched(swa, TwoOptimizers(), rates)
    assert swa.outcome() == {"snapshots": 4}
    near(parameters(weights(module)), mean_of(watch.steps, [6, 9, 12, 15]), rtol=1e-6, atol=1e-7)
    assert rates.rows[:6] == [[0.05, 0.05]] * 6
    assert rates.rows[6] == pytest.approx([0.0375, 0.0375])
    assert rates.rows[7:] == [[0.025, 0.025]] * 8


def test_optimizer_steps_count_and_not_batches() -> None:
    swa = lt.SWAWeights(start=2, every=2)
    module, watch, _ = watched(swa, accumulate_grad_batches=2)  # 3 steps an epoch
    assert swa.outcome() == {"snapshots": 4}
    near(parameters(weights(module)), mean_of(watch.steps, [2, 4, 6, 8]), rtol=1e-6, atol=1e-7)


def test_other_schedules_count_until_start_and_less_and_less_from_then_on() -> None:
    alone, both = Rates(), Rates()
    watched(lt.WarmupCosine(warmup=3), None, alone)  # type: ignore[arg-type]
    swa = lt.SWAWeights(start=6, lr=0.01, anneal=4)
    watched(swa, None, lt.WarmupCosine(warmup=3), both)
    before, after = ([row[0] for row in each.rows] for each in (alone, both))
    assert after[:7] == before[:7]
    assert after[8] == pytest.approx((before[8] + 0.01) / 2)
    assert after[10:] == [0.01] * 5
    assert before[10:] != after[10:]


def test_a_rate_that_is_led_nowhere_is_left_alone() -> None:
    rates = Rates()
    watched(lt.SWAWeights(), None, rates)
    assert rates.rows == [[0.05]] * 15


def test_training_itself_stays_as_it_is_with_its_own_statistics() -> None:
    plain, swa = Toy(), lt.SWAWeights(start=3, every=2)
    trainer().fit(plain, Loader(), Loader(2, seed=9))
    module, _, _ = watched(swa)
    assert_equal(live_of(swa, module), weights(plain))


@pytest.mark.parametrize("settings", [{}, {"fused": True}])
def test_no_host_read_on_steps_that_do_not_log(settings: dict[str, Any]) -> None:
    def reads(*callbacks: Callback) -> int:
        module, plugins = Toy(**settings), [scaler_plugin()]
        runner = trainer(*callbacks, plugins=plugins, log_every_n_steps=1000, max_epochs=1)
        with HostReads() as counter:
            runner.fit(module, Loader())
        return counter.count

    swa = lt.SWAWeights(start=1, every=1, lr=0.01, update_batchnorm=False)
    assert reads(swa) == reads()


def test_the_count_and_the_distance_are_logged() -> None:
    swa, logged = lt.SWAWeights(start=3, every=5), Logged("swa_weights")
    _, watch, _ = watched(swa, None, logged)
    assert [row.get("swa_weights/snapshots") for row in logged.rows] == [None] * 4 + [1] * 5 + [2] * 5 + [3]
    live, mean = (
        torch.cat([each.flatten() for each in parameters(of).values()])
        for of in (watch.steps[7], watch.steps[5])
    )
    assert logged.rows[4]["swa_weights/distance"] == 0
    assert logged.rows[6]["swa_weights/distance"] == pytest.approx(float((live - mean).norm() / live.norm()))


class Scheduled(Toy):
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


def test_a_scheduler_of_the_modules_own_is_refused_with_lr_alone() -> None:
    with pytest.raises(lt.ConflictError, match="Scheduled.configure_optimizers .* or leave out lr of SWAW"):
        trainer(lt.SWAWeights(lr=0.1)).fit(Scheduled(), Loader())
    module, _, _ = watched(lt.SWAWeights(), Scheduled())
    assert module.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.05 * 0.9**3)


def test_two_that_lead_the_rates_are_refused() -> None:
    pair = [lt.SWAWeights(lr=0.1), lt.SWAWeights(lr=0.2, label="b", evaluate=False)]
    with pytest.raises(lt.ConflictError, match="'lr_goal' must have one owner, got SWAWeights and"):
        trainer(*pair).fit(Toy(), Loader())


def test_lengths_that_cannot_be_known_are_refused_before_the_run() -> None:
    for settings in ({}, {"start": 3, "every": "10%"}, {"start": 3, "lr": 0.1}):
        with pytest.raises(ValueError, match=r"must be in steps, or max_steps be set"):
            trainer(lt.SWAWeights(**settings), max_epochs=-1).fit(Toy(), Loader())


def test_a_run_that_ends_before_the_first_snapshot_is_told() -> None:
    with pytest.warns(UserWarning, match="averaged nothing, since no multiple of every came before the end"):
        module, watch, _ = watched(lt.SWAWeights(start=14, every=4))
    assert_equal(weights(module), watch.steps[-1])


def test_a_run_that_is_stopped_before_the_start_is_told() -> None:
    with pytest.warns(UserWarning, match="averaged nothing, since start did not come before the end of the"):
        trainer(lt.SWAWeights(), Stops(after=7)).fit(Toy(), Loader())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"start": 4, "anneal": "2 epochs"}, "anneal ends at step 14, .* 5 steps: only 0% of the way to lr"),
        ({"start": 1, "anneal": 6}, "anneal ends at step 7, but the run has 5 steps: only 50% of the way to"),
        ({"start": "100%"}, "lr begins at step 5, but the run has 5 steps: it has no effect"),
    ],
)
def test_a_goal_that_the_run_ends_before_is_told(settings: dict[str, Any], told: str) -> None:
    with pytest.warns(UserWarning, match=f"SWAWeights: {told}"):
        trainer(lt.SWAWeights(lr=0.01, every=1, **settings), max_epochs=1).fit(Toy(), Loader())


def test_an_annealing_to_the_last_step_is_no_such_one() -> None:
    trainer(lt.SWAWeights(start=2, lr=0.01, anneal=3, every=1), max_epochs=1).fit(Toy(), Loader())


class Late(Callback):
    """Opens the head before the 7th step."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        pl_module.head.requires_grad_(trainer.global_step >= 6)


def test_what_is_opened_late_counts_with_its_former_weights_too() -> None:
    module, watch = Toy(), Watch()
    module.head.requires_grad_(False)
    trainer(lt.SWAWeights(start=0, every=4), Late(), watch).fit(module, Loader())
    near(parameters(weights(module)), mean_of(watch.steps, [4, 8, 12]), rtol=1e-6, atol=1e-7)
