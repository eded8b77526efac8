"""Each illness in a history made to have it, and none of them in one that is healthy."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lightning_tricks.reporting.run_history import History, Validation, Window, trend
from lightning_tricks.reporting.symptoms import SYMPTOMS, clips_always, clips_never


def falling(i: int, n: int) -> float:
    return 0.3 + 2.0 * math.exp(-5 * i / n)


def history(n: int = 40, *, seed: int = 0, total: int | None = 400, **changed: Any) -> History:
    """Return a healthy run of ``n`` windows of ten steps with cosine decay; ``changed`` replaces a column."""
    draw = random.Random(seed)
    columns: dict[str, Any] = {
        "loss": lambda i: falling(i, n) + draw.gauss(0, 0.02),
        "spread": lambda i: 0.06,
        "rate": lambda i: 0.5 + 0.5 * math.cos(math.pi * i / n),
        "update": lambda i: 2e-3,
        "gradient": lambda i: 1.0,
    } | changed
    run = History([], [], total)
    for i in range(n):
        run.add(Window(10 * (i + 1), *(columns[name](i) for name in Window._fields[1:])))
        if i % 4 == 3:
            run.validations.append(Validation(10 * (i + 1), i // 4 + 1, run.losses[-1] + 0.1, run.losses[-1]))
    return run


def found(run: History) -> list[str]:
    return [kind for kind, (symptom, _) in SYMPTOMS.items() if symptom(run)]


@pytest.mark.parametrize("seed", range(50))
def test_nothing_is_said_of_healthy_runs(seed: int) -> None:
    whole = history(seed=seed)
    for n in range(1, 41, 3):  # nor on the way
        run = History(whole.windows[:n], whole.validations[: n // 4], 400)
        assert found(run) == []


@pytest.mark.parametrize("seed", range(20))
def test_validation_that_jumps_about_at_a_constant_rate_is_no_over_fitting(seed: int) -> None:
    draw, run = random.Random(seed), history()
    for i in range(40):
        falls = math.exp(-i / 8)
        run.validations[i:] = [Validation(10 * i, i + 1, 0.1 + falls + abs(draw.gauss(0, 0.03)), falls)]
        assert SYMPTOMS["over-fitting"][0](run) is None


def overfitted() -> History:
    run = history(60, total=600)
    run.validations = [
        Validation(each.step, each.epoch, each.value + max(0, each.epoch - 4) * 0.3, each.training)
        for each in run.validations
    ]
    return run


ILL: dict[str, tuple[History, str]] = {
    "rate too high (divergence)": (
        history(12, loss=lambda i: 2.0 - 0.2 * i if i < 6 else 1.0 + 0.8 * (i - 5)),
        "the loss rose from 1 at step 60 to 5.8",
    ),
    "rate too high (oscillation)": (
        history(loss=lambda i: 2.3 + 0.3 * (-1) ** i, spread=lambda i: 1.0, update=lambda i: 0.2),
        "by 1 and does not fall, while a step changes weights by 20.0%",
    ),
    "rate too low": (
        history(loss=lambda i: 2.3 - 1e-4 * i, update=lambda i: 1e-6, rate=lambda i: 1.0),
        "the loss fell by 0.2% in 400 steps, each of which changes weights by 1e-06",
    ),
    "decayed too early": (
        history(
            loss=lambda i: 2.0 - 0.1 * min(i, 10) + 0.001 * (-1) ** i,
            rate=lambda i: 1.0 if i < 10 else 0.001,
        ),
        "below 2% of its peak at step 110 of 400",
    ),
    "over-fitting": (overfitted(), "since epoch 4 validation rose from"),
    "plateau": (
        history(30, loss=lambda i: max(2.0 - 0.2 * i, 0.8) + 0.002 * (-1) ** i, rate=lambda i: 1.0),
        "the loss stands at 0.8 since step 160",
    ),
}


@pytest.mark.parametrize("kind", SYMPTOMS)
def test_each_illness_is_found_alone(kind: str) -> None:
    run, words = ILL[kind]
    evidence = SYMPTOMS[kind][0](run)
    assert evidence is not None and words in evidence
    assert found(run) == [kind]


def test_a_loss_that_is_no_number() -> None:
    run = history(2, loss=lambda i: math.nan)
    assert SYMPTOMS["rate too high (divergence)"][0](run) == "the loss is nan at step 20"


def test_a_loss_that_shoots_up_at_the_start() -> None:
    run = history(2, loss=lambda i: 68.0 - 30.0 * i)
    run.first = 2.3
    assert SYMPTOMS["rate too high (divergence)"][0](run) == (
        "the loss rose from 2.3 at the first step to 68 by step 10"
    )
    for first in (40.0, None, -1.0):
        run.first = first
        assert found(run) == []


def test_little_is_no_evidence() -> None:
    for run, _ in ILL.values():
        assert found(History(run.windows[:4], run.validations[:1], run.total)) == []
    assert found(History([], [], None)) == []


def test_a_warm_up_is_not_taken_for_a_low_rate() -> None:
    settings: dict[str, Any] = {"loss": lambda i: 2.3 - 1e-4 * i, "update": lambda i: 1e-6}
    assert found(history(12, **settings, rate=lambda i: (i + 1) / 12)) == []
    assert found(history(12, **settings, rate=lambda i: 1.0)) == ["rate too low"]


def test_clipping() -> None:
    assert clips_always({"steps": 200, "clipped": 195}) == (
        "195 of 200 steps were clipped: the threshold sets the length of each step"
    )
    for outcome in ({"steps": 200, "clipped": 180}, {"steps": 20, "clipped": 20}, {"updates": 3}, {}):
        assert clips_always(outcome) is None
    assert clips_never({"steps": 200, "clipped": 0}, 0.05) == (
        "none of 200 steps was clipped, and the largest norm seen was 5.0% of the threshold"
    )
    assert clips_never({"steps": 200, "clipped": 1}, 0.05) is None
    assert clips_never({"steps": 200, "clipped": 0}, 0.5) is None
    assert clips_never({"steps": 200, "clipped": 0}, 0.0) is None  # no norm was logged
    assert clips_never({"cycles": 0}, 0.05) is None


def test_trend_is_that_of_scipy() -> None:
    values = np.random.default_rng(0).normal(size=20).cumsum()
    line = stats.linregress(np.arange(20), values)
    assert trend(list(values)) == pytest.approx((line.slope, line.slope / line.stderr), rel=1e-9)
    assert trend([1.0, 2.0, 3.0]) == (1.0, math.inf)


def test_a_long_run_is_kept_in_bounds_and_keeps_its_shape() -> None:
    run = history(5000, total=50_000)
    assert len(run.windows) <= 256
    steps = [window.step for window in run.windows]
    assert steps == sorted(steps) and steps[-1] == 50_000
    for window in run.windows:
        assert window.loss == pytest.approx(falling(window.step // 10, 5000), abs=0.1)
    assert found(run) == []
    again = History.restored(run.saved())
    assert again == run
