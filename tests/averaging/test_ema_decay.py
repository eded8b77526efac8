"""By how much EMAWeights forgets: half-lives in every unit, and decays that follow the length of the run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_tricks import HalfLife, InverseDecay, PowerDecay
from lightning_tricks.averaging.ema import EMAWeights
from lightning_tricks.averaging.ema_decay import (
    EMADecay,
    half_life_share,
    inverse_share,
    joint_share,
    power_share,
    warmed_share,
)
from lightning_tricks.lifecycle.batches import samples_of
from lightning_tricks.lifecycle.clock import Clock
from tests.averaging.watching import Watch, slow_twin, watched
from tests.host_reads import HostReads
from tests.toys import (
    Loader,
    StopAfter,
    StopError,
    Toy,
    TwoOptimizers,
    assert_equal,
    scaler_plugin,
    trainer,
    weights,
)


@pytest.mark.parametrize(
    ("updates", "share", "warmed"),
    [
        (0, 0.001, 9 / 10),  # d = 1/10
        (8, 0.001, 1 / 2),  # d = 9/18
        (8990, 0.001, 1 / 1000),  # d = 8991/9000 = 0.999: the join
        (10**6, 0.001, 1 / 1000),
        (0, 0.95, 0.95),  # smaller than any warm-up
        (0, 1.0, 1.0),
    ],
)
def test_warm_up_keeps_the_share_of_the_live_weights_high(updates: int, share: float, warmed: float) -> None:
    assert warmed_share(share, updates) == pytest.approx(warmed, rel=1e-12)
    for ours in (share, torch.tensor(share)):
        assert float(warmed_share(ours, torch.tensor(updates))) == pytest.approx(warmed, rel=1e-6)


def test_two_steps_as_one_multiply_their_decays() -> None:
    assert joint_share(0.1, 0.2) == pytest.approx(1 - 0.9 * 0.8)
    assert joint_share(0.0, 1e-17) == 1e-17
    assert float(joint_share(torch.tensor(0.5), 0.5)) == 0.75


def test_half_of_what_was_there_is_left_after_a_half_life() -> None:
    left = math.prod(1 - half_life_share(1 / 7) for _ in range(7))
    assert left == pytest.approx(0.5, rel=1e-14)
    assert half_life_share(0.0) == 0.0
    assert half_life_share(1e-20) == pytest.approx(math.log(2) * 1e-20)  # where 1 - d is 0 in 64 bits
    assert half_life_share(1e9) == 1.0


def mean_place(gamma: float, steps: int, every: int = 1) -> float:
    """Return the mean place, as a share of the run, that the average of ``theta_t = t`` stands at."""
    average, share = 0.0, 0.0
    for t in range(steps):
        share = joint_share(share, power_share(t, gamma=gamma))
        if (t + 1) % every == 0:
            average, share = average + share * (t + 1 - average), 0.0
    return average / steps


@pytest.mark.parametrize(("gamma", "place"), [(6.94, 0.8881), (16.97, 0.9473), (0.0, 0.5), (1.0, 2 / 3)])
def test_power_function_average_stands_where_the_paper_says(gamma: float, place: float) -> None:
    # The mean of s ** gamma over [0, 1] is (gamma + 1) / (gamma + 2).
    assert place == pytest.approx((gamma + 1) / (gamma + 2), abs=1e-4)
    assert mean_place(gamma, 20_000) == pytest.approx(place, abs=1e-3)


@pytest.mark.parametrize("every", [10, 100])
def test_power_function_average_stands_there_for_any_every(every: int) -> None:
    # Where beta is taken per call, it stands at 0.44 and 0.07 of the run.
    assert mean_place(6.94, 20_000, every) == pytest.approx(0.8881, abs=5e-3)


def test_n_steps_of_the_power_function_are_one_of_its_closed_form() -> None:
    share = 0.0
    for t in range(40, 50):
        share = joint_share(share, power_share(t, gamma=6.94))
    assert 1 - share == pytest.approx((1 - 10 / 50) ** 7.94, rel=1e-12)


def test_with_gamma_0_it_is_the_plain_mean() -> None:
    assert [power_share(t, gamma=0.0) for t in range(4)] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])


@pytest.mark.parametrize(
    ("t", "power", "inv_gamma", "decay"),
    # As timm's comments say where these are reached.
    [
        (10_000, 3 / 4, 1.0, 0.999),
        (215_400, 3 / 4, 1.0, 0.9999),
        (31_600, 2 / 3, 1.0, 0.999),
        (1_000_000, 2 / 3, 1.0, 0.9999),
        (0, 2 / 3, 1.0, 0.0),
        (30, 0.5, 10.0, 0.5),
    ],
)
def test_inverse_decay_reaches_what_timm_says(t: int, power: float, inv_gamma: float, decay: float) -> None:
    share = inverse_share(t, power=power, inv_gamma=inv_gamma)
    assert share == pytest.approx(1 - decay, rel=2e-3)


@pytest.mark.parametrize("policy", [PowerDecay(6.94), PowerDecay(0.0), InverseDecay(max_decay=0.99)])
@pytest.mark.parametrize("updates", [0, 1, 17, 10**6])
def test_counts_on_a_device_give_the_same(policy: EMADecay, updates: int) -> None:
    here = policy.share(updates, samples=1, clock=Clock())
    there = policy.share(torch.tensor(updates), samples=1, clock=Clock())
    assert isinstance(there, Tensor)
    assert float(there) == pytest.approx(float(here), rel=1e-5)


def inverse_at(position: int) -> float:
    return min(0.9, 1 - (1 + (position - 1) / 2) ** -0.75)


@pytest.mark.parametrize(
    ("settings", "decay"),
    [
        ({"decay": HalfLife(4)}, lambda _: 2 ** (-1 / 4)),
        ({"decay": HalfLife("4 steps"), "every": 3}, lambda _: 2 ** (-1 / 4)),
        ({"decay": HalfLife("2 epochs")}, lambda _: 2 ** (-1 / 10)),
        ({"decay": HalfLife("20%")}, lambda _: 2 ** (-1 / 3)),
        ({"decay": HalfLife("64 samples"), "every": 2}, lambda _: 2 ** (-8 / 64)),
        ({"decay": PowerDecay(6.94)}, lambda position: (1 - 1 / position) ** 7.94),
        ({"decay": PowerDecay(1), "every": 5, "start": 0}, lambda position: (1 - 1 / position) ** 2),
        ({"decay": InverseDecay(0.75, inv_gamma=2, max_decay=0.9)}, inverse_at),
    ],
)
def test_average_is_the_slow_twins(settings: dict[str, Any], decay: Any) -> None:
    ema = EMAWeights(**settings)
    module, watch, _ = watched(ema, precision="64-true")
    warmup = isinstance(settings["decay"], HalfLife)
    expected = slow_twin(watch.steps, decay, warmup=warmup, every=ema.every, start=0)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=0, atol=1e-13)


class Uneven(Loader):
    """Batches of 8, 3, 8, 3, ... samples."""

    def __iter__(self) -> Any:
        for index, (inputs, targets) in enumerate(super().__iter__()):
            yield (inputs[:3], targets[:3]) if index % 2 else (inputs, targets)


@pytest.mark.parametrize(
    ("accumulate", "samples"), [(1, [8, 3, 8, 3, 8]), (2, [11, 11, 8]), (5, [30])], ids=str
)
def test_samples_of_all_accumulated_batches_count(accumulate: int, samples: list[int]) -> None:
    ema, watch, module = EMAWeights(decay=HalfLife("20 samples"), decay_warmup=False), Watch(), Toy()
    trainer(ema, watch, accumulate_grad_batches=accumulate).fit(module, Uneven())
    steps = 3 * samples  # epochs
    expected = slow_twin(watch.steps, lambda p: 2 ** (-steps[p - 1] / 20), warmup=False, every=1, start=0)
    assert len(watch.steps) == len(steps) + 1
    torch.testing.assert_close(module.head.weight.detach(), expected["head.weight"])


def test_samples_count_once_in_manual_optimization() -> None:
    ema = EMAWeights(decay=HalfLife("20 samples"), decay_warmup=False)
    module, watch, _ = watched(ema, TwoOptimizers())
    expected = slow_twin(watch.steps, lambda _: 2 ** (-8 / 20), warmup=False, every=1, start=0)
    torch.testing.assert_close(module.head.weight.detach(), expected["head.weight"])


def test_a_run_in_samples_goes_on_to_the_bit_within_an_accumulation(tmp_path: Path) -> None:
    def run(*callbacks: Any, **settings: Any) -> Toy:
        module = Toy()
        policy = EMAWeights(decay=HalfLife("20 samples"), every=2)
        trainer(policy, *callbacks, accumulate_grad_batches=1, max_epochs=2).fit(module, Uneven(), **settings)
        return module

    whole, saved = run(), tmp_path / "stopped.ckpt"
    with pytest.raises(StopError):
        run(StopAfter(7, saved))
    state = torch.load(saved, weights_only=True)["callbacks"]["EMAWeights"]["state"]
    assert state["progress"]["samples"] == 0
    assert state["progress"]["share"] > 0  # of a step that has not moved the average yet
    resumed = Toy()
    trainer(EMAWeights(decay=HalfLife("20 samples"), every=2), max_epochs=2).fit(
        resumed, Uneven(), ckpt_path=saved
    )
    assert_equal(weights(resumed), weights(whole))


def test_samples_of_an_open_accumulation_are_saved(tmp_path: Path) -> None:
    saved = tmp_path / "stopped.ckpt"
    ema = EMAWeights(decay=HalfLife("20 samples"))
    with pytest.raises(StopError):
        trainer(ema, StopAfter(4, saved), accumulate_grad_batches=3).fit(Toy(), Loader())
    assert (
        torch.load(saved, weights_only=True)["callbacks"]["EMAWeights"]["state"]["progress"]["samples"] == 8
    )


@pytest.mark.parametrize("policy", [HalfLife("20 samples"), PowerDecay(), InverseDecay()])
@pytest.mark.parametrize("scaled", [False, True])
def test_no_host_read(policy: EMADecay, scaled: bool) -> None:
    def reads(*callbacks: Any) -> int:
        plugins = [scaler_plugin()] if scaled else []
        with HostReads() as counter:
            trainer(*callbacks, plugins=plugins, log_every_n_steps=1000, max_epochs=1).fit(
                Toy(fused=True), Loader()
            )
        return counter.count

    assert reads(EMAWeights(decay=policy)) == reads()


def test_samples_are_those_of_all_processes_that_get_data_of_their_own() -> None:
    runner, batch = trainer(), (torch.zeros(8, 4), torch.zeros(8))
    assert samples_of(runner, batch) == 8
    assert samples_of(runner, {"x": torch.zeros(3, 2), "names": ["a", "b", "c"]}) == 3
    assert samples_of(runner, None) == 0
    runner.strategy.distributed_sampler_kwargs = {"num_replicas": 4, "rank": 1}
    assert samples_of(runner, batch) == 32


def test_a_batch_without_tensors_is_named() -> None:
    with pytest.raises(
        ValueError, match="batch must hold a tensor .*, or lengths be given in steps, got a dict without"
    ):
        samples_of(trainer(), {"text": "words"})


@pytest.mark.parametrize(
    ("build", "error"),
    [
        (lambda: HalfLife(0), "half_life must be above 0, got 0"),
        (lambda: HalfLife("0 samples"), r"half_life must lie in \(0.0, inf\), got 0.0"),
        (lambda: HalfLife("1e999 samples"), "half_life must lie in"),
        (lambda: HalfLife("many samples"), "half_life must be a whole number of steps or text"),
        (lambda: HalfLife(0.5), "half_life must be a whole number of steps or text"),
        (lambda: PowerDecay(-1.0), r"gamma must lie in \[0.0, inf\), got -1.0"),
        (lambda: InverseDecay(0.0), "power must lie in"),
        (lambda: InverseDecay(inv_gamma=0.0), "inv_gamma must lie in"),
        (lambda: InverseDecay(max_decay=1.5), r"max_decay must lie in \[0.0, 1.0\], got 1.5"),
        (lambda: EMAWeights(decay=HalfLife), "decay must be a number"),
    ],
)
def test_wrong_settings_are_named(build: Any, error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        build()


def test_a_half_life_that_needs_the_length_of_an_endless_run_is_refused_before_it_starts() -> None:
    runner = trainer(EMAWeights(decay=HalfLife("5%")), max_epochs=-1)
    with pytest.raises(ValueError, match="half_life must be in steps, or max_steps be set, .* got '5%'"):
        runner.fit(Toy(), Loader())


def test_an_endless_run_may_count_samples_or_steps() -> None:
    for half_life in ("100 samples", 3):
        trainer(EMAWeights(decay=HalfLife(half_life)), max_epochs=-1, max_steps=2).fit(Toy(), Loader())
