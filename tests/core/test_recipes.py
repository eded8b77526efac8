"""The usual recipes against tables worked out by hand, and what their parts refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest

import lightning_tricks as lt
from lightning_tricks.core.duration import Horizon
from lightning_tricks.core.notation import as_schedule, parse
from lightning_tricks.core.schedule import Schedule

EPOCHS = Horizon(400, (10, 20))  # forty epochs of ten steps


def at_epochs(text: str, epochs: list[float], horizon: Horizon = EPOCHS) -> list[float]:
    course = parse(text).resolve(horizon)
    return [course(horizon.step_at(epoch)) for epoch in epochs]


@pytest.mark.parametrize(
    ("text", "epochs", "expected"),
    [
        # He et al. 2016 for ImageNet, and Goyal et al. 2017 with five epochs of warm-up before it.
        (
            "multistep(['10 epochs', '20 epochs', '30 epochs'])",
            [0, 9.9, 10, 19.9, 20, 29.9, 30, 39.9, 40],
            [1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.001],
        ),
        (
            "warmup('5 epochs') >> multistep(['10 epochs', '20 epochs'])",
            [2.5, 5, 9.9, 10, 20, 40],
            [26 / 51, 1, 1, 0.1, 0.01, 0.01],
        ),
        (
            "warmup('5 epochs') >> exponential_decay(gamma=0.9, every='1 epoch')",
            [5, 6, 6.5, 7, 15, 40, 41],
            [1, 0.9, 0.9**1.5, 0.81, 0.9**10, 0.9**35, 0.9**35],
        ),
        (
            "step(every='10 epochs', gamma=0.5)",
            [0, 9.9, 10, 20, 39.9, 40, 50],
            [1, 1, 0.5, 0.25, 0.125, 1 / 16, 1 / 16],
        ),
        # After 1 / k units half is left.
        ("inverse_time(k=0.5, every='1 epoch')", [0, 1, 2, 6], [1, 2 / 3, 0.5, 0.25]),
        ("inverse_time(k=0.5, every='2 epochs', staircase=True)", [1.9, 2, 3.9, 4], [1, 2 / 3, 2 / 3, 0.5]),
        # Vaswani et al. 2017: a rise in a straight line, then the root of the warm-up over the step.
        ("warmup(40) >> inverse_sqrt()", [4, 16, 36, 40], [1, 0.5, 1 / 3, 1 / math.sqrt(10)]),
        ("inverse_sqrt('1 epoch')", [0, 3, 8], [1, 0.5, 1 / 3]),
        ("polynomial(power=2.0)", [0, 20, 30, 40], [1, 0.25, 0.0625, 0]),
        ("polynomial(power=0.5, to=0.2)", [0, 30, 40], [1, 0.6, 0.2]),
        # SGDR's Figure 1: cycles of 5, 10, 20 epochs.
        (
            "cosine_restarts('5 epochs', mult=2)",
            [0, 2.5, 4.9, 5, 10, 14.9, 15, 25, 35],
            [1, 0.5, 0.00098664, 1, 0.5, 0.00024672, 1, 0.5, 1],
        ),
        (
            "cosine_restarts('10 epochs', to=0.2, peak_decay=0.5)",
            [0, 5, 10, 15, 20, 40, 45],
            [1, 0.6, 0.6, 0.4, 0.4, 0.2, 0.2],
        ),
        # Smith 2017, Figure 2: from the base rate to the maximum and back.
        ("cyclic('10 epochs', start=0.1, to=1.0)", [0, 2.5, 5, 7.5, 10, 15], [0.1, 0.55, 1, 0.55, 0.1, 1]),
        (
            "cyclic('10 epochs', start=0.0, to=1.0, form='triangular2')",
            [5, 10, 15, 25],
            [1, 0, 0.5, 0.25],
        ),
        (
            "cyclic('10 epochs', start=0.0, to=1.0, form='exp_range', gamma=0.25)",
            [5, 10, 15],
            [0.5, 0, 0.125],
        ),
        (
            "one_cycle('10 epochs', shape='linear', div=10.0)",
            [0, 5, 10, 25, 40],
            [0.1, 0.55, 1, 0.500005, 1e-5],
        ),
        ("one_cycle('50%', div=5.0, final_div=2.0)", [0, 10, 20, 30, 40], [0.2, 0.6, 1, 0.55, 0.1]),
        # MiniCPM and Haegele et al.: a plateau, and a decay over the last tenth or fifth.
        (
            "warmup('5%') >> stable_decay('20%')",
            [2, 31.9, 32, 34, 38, 40, 50],
            [1, 1, 1, 0.5, 1 - math.sqrt(0.75), 0, 0],
        ),
        ("stable_decay('4 epochs', shape='linear', to=0.1)", [36, 38, 40], [1, 0.55, 0.1]),
        (
            "0.5 * (warmup(1) >> step(every=2, gamma=0.5))",
            [0, 0.1, 0.2, 0.3, 0.5],
            [0.25, 0.5, 0.5, 0.25, 0.125],
        ),
    ],
)
def test_against_a_table_by_hand(text: str, epochs: list[float], expected: list[float]) -> None:
    assert at_epochs(text, epochs) == pytest.approx(expected, abs=1e-8)
    assert parse(repr(parse(text))) == parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "warmup('5 epochs') >> multistep(['10 epochs', 300, '90%'], gamma=0.5)",
        "cosine_restarts('10 epochs', to=0.2, mult=2, peak_decay=0.5)",
        "0.5 * (warmup(1) >> stable_decay('20%', shape='linear', to=0.1))",
        "cyclic('4 epochs', start=0.1, to=1.0, form='exp_range', gamma=0.9)",
        "warmup(5) >> inverse_sqrt(over=5) >> one_cycle('30%')",
    ],
)
def test_it_prints_as_it_is_written(text: str) -> None:
    assert repr(parse(text)) == text


def test_epochs_are_those_of_the_accumulation_schedule() -> None:
    """Two epochs of ten steps, then epochs of five."""
    uneven = Horizon(40, (10, 20, 25, 30))
    course = parse("step(every='1 epoch', gamma=0.5)").resolve(uneven)
    assert [course(at) for at in (9, 10, 19, 20, 24, 25, 30, 34, 35)] == [
        *(1, 0.5, 0.5, 0.25, 0.25, 0.125, 1 / 16, 1 / 16, 1 / 32)
    ]
    course = parse("stable_decay('2 epochs', shape='linear')").resolve(uneven)
    assert [course(at) for at in (29, 30, 35, 40)] == [1, 1, 0.5, 0]


def test_a_long_decay_takes_all_of_the_part() -> None:
    course = parse("warmup(10) >> stable_decay('20 epochs', shape='linear')").resolve(Horizon(20, (5, 10)))
    assert [course(at) for at in (10, 15, 20)] == [1, 0.5, 0]
    course = parse("one_cycle(30)").resolve(Horizon(20))
    assert course(10) == pytest.approx(0.04 + 0.96 * 0.5)
    assert course(20) == pytest.approx(4e-6)


@pytest.mark.parametrize(
    "name", ["step(every=3)", "cosine_restarts(4)", "cyclic(4, to=2.0)", "multistep([3])"]
)
def test_what_counts_in_steps_needs_no_length_of_the_run(name: str) -> None:
    endless = parse(name).resolve(Horizon(None))
    finite = parse(name).resolve(Horizon(1000))
    assert [endless(at) for at in range(50)] == [finite(at) for at in range(50)]


@pytest.mark.parametrize(
    "text", ["step(every='1 epoch')", "stable_decay(5)", "one_cycle()", "cyclic('5%', to=2)"]
)
def test_what_does_not_says_what_is_missing(text: str) -> None:
    with pytest.raises(ValueError, match="max_steps|must be in steps"):
        parse(text).resolve(Horizon(None, unknown="the loader has no length"))


@pytest.mark.parametrize(
    "text",
    [
        "step(every='10%', gamma=0.5, over='50%') >> cosine()",
        "cosine_restarts('20%', mult=2, over='50%') >> linear(to=0.0)",
        "stable_decay('10%', over='50%', to=0.5) >> exponential_decay(gamma=0.5, every='10%')",
        "warmup('20%') >> inverse_sqrt(over='30%') >> linear(to=0.0)",
    ],
)
@pytest.mark.parametrize("stop", [5, 35, 70])
def test_with_a_longer_run_what_has_begun_stays_as_it_was(text: str, stop: int) -> None:
    schedule = parse(text)
    before = schedule.resolve(Horizon(100))
    kept = [Horizon.restored(laid.saved()) for laid in before.kept(stop)]
    assert kept == before.kept(stop)
    after = schedule.resolve(Horizon(200), kept=kept)
    spent = [leg.span.end for leg in before.legs[:-1] if leg.span.begin <= stop][-1]
    assert [after(at) for at in range(spent)] == [before(at) for at in range(spent)]
    assert after.legs[-1].span.end == 200
    again = schedule.resolve(Horizon(300), kept=after.kept(stop))
    assert [again(at) for at in range(spent)] == [before(at) for at in range(spent)]
    for leg, following in zip(after.legs, after.legs[1:], strict=False):
        assert leg.last == pytest.approx(following.factor * following.first)


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("step(every='1 epoch')", 0.0, 1.0),
        ("step(every='1 epoch', gamma=0.5, over='2 epochs')", 0.25, 1.0),
        ("exponential_decay(gamma=0.5, every='50%')", 0.25, 1.0),
        ("multistep([5, 10], gamma=0.5)", 0.25, 1.0),
        ("2.0 * cyclic(10, to=3.0)", 2.0, 6.0),
        ("-1 * inverse_time(k=1.0, every=1)", -1.0, 0.0),
        ("one_cycle(div=10.0, final_div=10.0)", 0.01, 1.0),
        ("step(every=5, over=10) >> cosine(to=3.0)", 0.01, 3.0),
        ("cosine_restarts(5, start=0.5, to=0.1)", 0.1, 0.5),
    ],
)
def test_bounds(text: str, low: float, high: float) -> None:
    assert parse(text).bounds() == pytest.approx((low, high))


def test_a_schedule_that_leaves_the_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"every value of decay must lie in \[0.0, 1.0\], got 10.0"):
        as_schedule("decay", "cyclic(10, to=10)", 0.0, 1.0)
    with pytest.raises(ValueError, match=r"every value of max_norm must lie in \(0.0, inf\], got 0.0"):
        as_schedule("max_norm", "step(every=5)", 0.0, open_low=True)
    assert as_schedule("max_norm", "step(every=5, over=50)", 0.0, open_low=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step()", "every"),
        ("step(every=0)", "every must be above 0, got 0"),
        ("step(every=0.5)", "every must be a whole number of steps"),
        ("step(every=5, gamma=0)", r"gamma must lie in \(0.0, 1.0\], got 0"),
        ("exponential_decay(gamma=1.1, every=5)", "gamma must lie in"),
        ("inverse_time(k=0, every=5)", r"k must lie in \(0.0, inf\), got 0"),
        ("inverse_time(k=1, every=5, staircase=1)", "staircase must be True or False"),
        ("multistep([])", r"milestones must be a list of moments of the run, got \[\]"),
        ("multistep('5 epochs')", "milestones must be a list"),
        ("multistep([5, 5])", r"milestones must come one after the other, got \[5, 5\]"),
        ("multistep([5, 0.5])", r"milestones\[1\] must be a whole number of steps"),
        ("multistep([[5]])", r"milestones\[0\] must be a whole number of steps"),
        ("polynomial(power=0)", "power must lie in"),
        ("cosine_restarts(5, mult=0.5)", "mult must be a whole number"),
        ("cosine_restarts(5, peak_decay=2)", "peak_decay must lie in"),
        ("cyclic(5, to=2, form='square')", "form must be one of 'triangular'"),
        ("cyclic(5, to=2, gamma=0.5)", "gamma must be given with form 'exp_range' alone, got 0.5 with"),
        ("cyclic(5, to=2, form='exp_range')", "gamma must be given with form 'exp_range' alone, got None"),
        ("one_cycle(div=0.5)", "div must lie in"),
        ("stable_decay(5, shape='cube')", "shape must be one of 'sqrt', 'linear'"),
        ("stepp(every=5)", "did you mean 'step'"),
    ],
)
def test_bad_settings_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (lambda: lt.inverse_sqrt(), "timescale must be given where no warm-up comes before"),
        (
            lambda: lt.warmup(30) >> lt.multistep(["2 epochs", "4 epochs"]),
            "milestones must not come before their part, which begins at step 30, got '2 epochs', which",
        ),
    ],
)
def test_parts_that_cannot_lie_where_they_are_refuse(schedule: Any, message: str) -> None:
    built: Schedule = schedule()
    with pytest.raises(ValueError, match=message):
        built.resolve(EPOCHS)


def test_units_that_are_next_to_nothing_overflow_nowhere() -> None:
    for text in (
        "step(every='5e-324%')",
        "inverse_time(k=1e308, every='1e-308 epochs')",
        "cyclic('1e-300%', to=2)",
    ):
        course = parse(text).resolve(EPOCHS)
        assert all(math.isfinite(course(at)) for at in (0, 1, 399, 400, 500))
