import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_tricks import (
    constant,
    cosine,
    cosine_restarts,
    cyclic,
    exponential,
    exponential_decay,
    inverse_sqrt,
    inverse_time,
    linear,
    polynomial,
    stable_decay,
    step,
    warmup,
)
from lightning_tricks.core.duration import Horizon
from lightning_tricks.core.notation import as_schedule, parse
from lightning_tricks.core.schedule import Schedule


def values(schedule: Schedule, steps: int, total: int | None = None) -> list[float]:
    course = schedule.resolve(Horizon(steps if total is None else total))
    return [round(course(step), 3) for step in range(steps)]


# Written out by hand for a run of 10 steps; index 10 and 11 lie past its end.
@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (cosine(), [1, 0.976, 0.905, 0.794, 0.655, 0.5, 0.345, 0.206, 0.095, 0.024, 0, 0]),
        (
            warmup(3) >> cosine(),
            [0.25, 0.5, 0.75, 1, 0.95, 0.812, 0.611, 0.389, 0.188, 0.05, 0, 0],
        ),
        (linear(to=0.0), [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0, 0]),
        (constant(2.0, over=8) >> linear(to=0.0), [2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 0, 0]),
        (
            exponential(to=1 / 1024),
            [1, 0.5, 0.25, 0.125, 0.062, 0.031, 0.016, 0.008, 0.004, 0.002, 0.001, 0.001],
        ),
        (warmup(2, shape="exponential", start=0.25) >> constant(), [0.25, 0.5, *[1] * 10]),
        (warmup(10) >> cosine(to=0.5), [*(round((t + 1) / 11, 3) for t in range(10)), 0.5, 0.5]),
        (0.1 * (warmup(1) >> linear(to=0.0)), [0.05, 0.1, 0.089, 0.078, 0.067, 0.056, 0.044]),
    ],
    ids=repr,
)
def test_against_a_table_by_hand(schedule: Schedule, expected: list[float]) -> None:
    course = schedule.resolve(Horizon(10))
    assert [course(step) for step in range(len(expected))] == pytest.approx(expected, abs=5.01e-4)


@given(length=st.integers(1, 200), end=st.floats(0.0, 1.0))
def test_cosine_is_torchs(length: int, end: float) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, length, eta_min=end)
    ours = cosine(to=end).resolve(Horizon(length))
    for at in range(length):
        assert ours(at) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        theirs.step()


LENGTHS = st.one_of(st.integers(1, 50), st.sampled_from(["1 epoch", "0.3 epochs", "10%"]))
VALUES, SHARES = st.floats(-2, 2), st.floats(0.1, 1.0)
KINDS: list[tuple[Callable[..., Schedule], dict[str, st.SearchStrategy[Any]]]] = [
    (constant, {}),
    (linear, {"to": VALUES}),
    (cosine, {"to": VALUES}),
    (polynomial, {"to": VALUES, "power": st.floats(0.2, 4.0)}),
    (step, {"every": LENGTHS, "gamma": SHARES}),
    (exponential_decay, {"every": LENGTHS, "gamma": SHARES}),
    (inverse_time, {"every": LENGTHS, "k": st.floats(0.01, 5.0), "staircase": st.booleans()}),
    (inverse_sqrt, {"timescale": LENGTHS}),
    (cosine_restarts, {"cycle": LENGTHS, "to": VALUES, "mult": st.integers(1, 3), "peak_decay": SHARES}),
    (cyclic, {"cycle": LENGTHS, "to": VALUES, "form": st.sampled_from(["triangular", "triangular2"])}),
    (cyclic, {"cycle": LENGTHS, "to": VALUES, "form": st.just("exp_range"), "gamma": SHARES}),
    (stable_decay, {"decay": LENGTHS, "to": VALUES, "shape": st.sampled_from(["sqrt", "linear"])}),
]
any_part = st.one_of([st.builds(kind, over=LENGTHS, **settings) for kind, settings in KINDS])


@settings(max_examples=300)
@given(parts=st.lists(any_part, min_size=2, max_size=5), factor=st.sampled_from([0.5, 3.0, -1.0]))
def test_laws_of_the_algebra(parts: list[Schedule], factor: float) -> None:
    joined = parts[0]
    for part in parts[1:]:
        joined = joined >> part
    horizon = Horizon(100, (7, 20, 40))
    course = joined.resolve(horizon)
    for leg, following in zip(course.legs, course.legs[1:], strict=False):
        # Continuous at the join: a part starts where the one before it ends.
        assert leg.last == pytest.approx(following.factor * following.first)
    for at in range(0, 260, 7):
        assert (factor * joined).resolve(horizon)(at) == pytest.approx(factor * course(at))
    low, high = joined.bounds()
    assert all(low - 1e-9 <= course(at) <= high + 1e-9 for at in range(260))
    assert parse(repr(joined)) == parse(repr(factor * joined)).inner == joined
    assert parse(repr(joined)).resolve(horizon)(33) == course(33)
    assert pickle.loads(pickle.dumps(joined)) == joined


@pytest.mark.parametrize(
    "schedule",
    [
        2 * (3 * cosine()),
        2 * (3 * (warmup(5) >> cosine())),
        -1 * (0.5 * (4 * linear(to=0.1))),
        2 * (3 * warmup(5) >> 0.5 * (4 * cosine())),
    ],
    ids=repr,
)
def test_nested_factors_survive_in_writing(schedule: Schedule) -> None:
    again = parse(repr(schedule))
    assert repr(parse(repr(again))) == repr(again)
    laid, once_more = schedule.resolve(Horizon(40)), again.resolve(Horizon(40))
    assert [laid(at) for at in range(45)] == [once_more(at) for at in range(45)]


def test_factors_are_multiplied_out() -> None:
    assert repr(2 * (3 * cosine())) == "6.0 * cosine(to=0.0)"
    assert parse("2 * 3 * cosine()") == parse("2 * (3 * cosine())") == parse("6 * cosine()")
    assert parse("2 * 3 * (warmup(4) >> cosine())").resolve(Horizon(9))(4) == 6.0
    assert parse("0.5 * -3").resolve(Horizon(9))(4) == -1.5


def test_percent_and_epochs_resolve_against_the_run() -> None:
    course = (warmup("10%") >> constant(over="1 epoch") >> linear(to=0.0)).resolve(Horizon(100, (20, 40)))
    assert [leg.span.end for leg in course.legs] == [10, 30, 100]


def test_begun_parts_keep_their_length_when_the_run_grows_and_the_last_stretches() -> None:
    schedule = warmup("10%") >> constant(over="50%") >> linear(to=0.0)
    before = schedule.resolve(Horizon(100))
    assert len(before.kept(5)) == 1
    assert before.kept(10) == [Horizon(100)] * 2
    after = schedule.resolve(Horizon(200), kept=before.kept(30))
    assert [leg.span.end for leg in after.legs] == [10, 60, 200]
    assert all(before(step) == after(step) for step in range(60))


def test_only_the_last_part_may_lack_a_length() -> None:
    with pytest.raises(ValueError, match="only the last part .* got cosine"):
        cosine(to=0.1) >> linear(to=0.0)


def test_a_schedule_without_end_needs_a_run_with_one() -> None:
    with pytest.raises(ValueError, match="the loader is endless.*over="):
        cosine().resolve(Horizon(None, unknown="the loader is endless"))
    assert constant(0.5).resolve(Horizon(None))(10**6) == 0.5


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "cosine.__class__",
        "cosine(to=[1])",
        "lambda: 1",
        "warmup('5%') + cosine()",
        "cosine() * 2",
        "cosine() * cosine()",
        "2 * '3' * cosine()",
        "2 * None",
        "1e200 * 1e200 * cosine()",
        "2 >> cosine()",
        "cosine(end=1)",
        "warmup()",
        "cosine(",
        "",
        "True",
        "cosine(**{})",
        "foo",
    ],
)
def test_text_that_is_no_schedule_is_refused(text: str) -> None:
    with pytest.raises((ValueError, TypeError), match="max_norm"):
        as_schedule("max_norm", text)


@pytest.mark.parametrize("bad", [None, [1], {"to": 1}, True, math.nan, -1, -0.5, "linear(to=-1)", "-1"])
def test_settings_outside_their_range_are_refused(bad: object) -> None:
    with pytest.raises((TypeError, ValueError), match="max_norm"):
        as_schedule("max_norm", bad, 0.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: linear(to=math.inf),
        lambda: linear(to=0.0, over=0.5),
        lambda: exponential(to=0.0),
        lambda: exponential(to=0.1, start=0.0),
        lambda: warmup("5%", shape="cubic"),
        lambda: warmup("5%", start=1.0),
        lambda: 0.0 * cosine(),
        lambda: 2 * (0.0 * cosine()),
        lambda: 1e-200 * (1e-200 * cosine()),
        lambda: True * (2 * cosine()),
        lambda: constant("a"),
    ],
)
def test_parts_refuse_bad_settings(call: object) -> None:
    with pytest.raises((TypeError, ValueError), match="must"):
        call()  # type: ignore[operator]
