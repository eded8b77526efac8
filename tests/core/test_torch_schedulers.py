"""Schedules against torch's own schedulers, over a thousand random settings each, at every step of a run."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

import lightning_tricks as lt
from lightning_tricks.core.duration import Horizon
from lightning_tricks.core.schedule import Schedule

SETTINGS = 1000
Theirs = Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]
Pair = tuple[Schedule, Theirs, int]


def torch_rates(build: Theirs, steps: int, lr: float = 1.0) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = build(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def step_lr(draw: random.Random, steps: int) -> Pair:
    every, gamma = draw.randint(1, steps), draw.uniform(0.05, 1.0)
    return lt.step(every=every, gamma=gamma), lambda o: lr_scheduler.StepLR(o, every, gamma), steps


def multistep_lr(draw: random.Random, steps: int) -> Pair:
    moments = sorted(draw.sample(range(1, 2 * steps + 4), draw.randint(1, 5)))
    gamma = draw.uniform(0.05, 1.0)
    ours = lt.multistep(moments, gamma=gamma)
    return ours, lambda o: lr_scheduler.MultiStepLR(o, moments, gamma), steps


def exponential_lr(draw: random.Random, steps: int) -> Pair:
    gamma = draw.uniform(0.05, 1.0)
    ours = lt.exponential_decay(gamma=gamma, every=1)
    return ours, lambda o: lr_scheduler.ExponentialLR(o, gamma), steps


def polynomial_lr(draw: random.Random, steps: int) -> Pair:
    power = draw.uniform(0.2, 4.0)
    return lt.polynomial(power=power), lambda o: lr_scheduler.PolynomialLR(o, steps, power), steps + 1


def cosine_lr(draw: random.Random, steps: int) -> Pair:
    end = draw.uniform(0.0, 1.0)
    ours = lt.cosine(to=end)
    return ours, lambda o: lr_scheduler.CosineAnnealingLR(o, steps, eta_min=end), steps + 1


def warm_restarts(draw: random.Random, steps: int) -> Pair:
    cycle, mult, end = draw.randint(1, steps), draw.randint(1, 3), draw.uniform(0.0, 1.0)
    ours = lt.cosine_restarts(cycle, mult=mult, to=end)
    return (
        ours,
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, cycle, T_mult=mult, eta_min=end),
        steps,
    )


def cyclic_lr(draw: random.Random, steps: int) -> Pair:
    half, top = draw.randint(1, steps), draw.uniform(1.0, 20.0)
    form = draw.choice(["triangular", "triangular2", "exp_range"])
    gamma = draw.uniform(0.9, 1.0)  # per step, as torch has it
    ours = lt.cyclic(2 * half, to=top, form=form, gamma=gamma ** (2 * half) if form == "exp_range" else None)

    def theirs(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        return lr_scheduler.CyclicLR(optimizer, 1.0, top, half, mode=form, gamma=gamma, cycle_momentum=False)

    return ours, theirs, steps


def one_cycle_lr(draw: random.Random, steps: int) -> Pair:
    """Ours reaches the end after the last step, where torch's has one step more; the peak is one later."""
    rise, div, final = draw.randint(1, steps - 1), draw.uniform(1.0, 50.0), draw.uniform(1.0, 1e5)
    shape = draw.choice(["cosine", "linear"])

    def theirs(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        return lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=1.0,
            total_steps=steps + 1,
            pct_start=(rise + 1) / (steps + 1),
            anneal_strategy={"cosine": "cos", "linear": "linear"}[shape],
            cycle_momentum=False,
            div_factor=div,
            final_div_factor=final,
        )

    return lt.one_cycle(rise, shape=shape, div=div, final_div=final), theirs, steps


PAIRS = [
    step_lr,
    multistep_lr,
    exponential_lr,
    polynomial_lr,
    cosine_lr,
    warm_restarts,
    cyclic_lr,
    one_cycle_lr,
]


def cases(pair: Callable[[random.Random, int], Pair]) -> Iterator[tuple[Pair, int, int]]:
    draw = random.Random(pair.__name__)
    for _ in range(SETTINGS):
        steps = draw.randint(2, 40)
        yield pair(draw, steps), steps, draw.randint(0, 10)


@pytest.mark.filterwarnings("ignore:.*epoch parameter in `scheduler.step.*:UserWarning")
@pytest.mark.sampled(2)
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.__name__)
def test_each_step_has_torchs_rate_after_a_warmup_too(pair: Callable[[random.Random, int], Pair]) -> None:
    for (ours, theirs, compared), steps, warm in cases(pair):
        expected = torch_rates(theirs, compared)
        alone = ours.resolve(Horizon(steps))
        assert [alone(at) for at in range(compared)] == pytest.approx(expected, rel=1e-9, abs=1e-11), ours
        if pair is not multistep_lr:  # whose milestones are counted from the beginning of the run
            joined = (lt.warmup(warm) >> ours).resolve(Horizon(warm + steps))
            after = [joined(warm + at) for at in range(compared)]
            assert after == pytest.approx(expected, rel=1e-9, abs=1e-11), ours


def any_schedule(draw: random.Random) -> Any:
    return draw.choice(PAIRS)(draw, draw.randint(2, 40))[0]


def test_no_value_lies_outside_the_bounds() -> None:
    draw = random.Random(0)
    for _ in range(SETTINGS):
        schedule = any_schedule(draw)
        low, high = schedule.bounds()
        course = schedule.resolve(Horizon(draw.randint(1, 200)))
        assert all(low - 1e-12 <= course(at) <= high + 1e-12 for at in range(220)), schedule
