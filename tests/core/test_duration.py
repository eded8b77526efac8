import pytest

from lightning_tricks.core.duration import Duration, Horizon, as_duration

# 5 steps in each of the first two epochs, then 3: an accumulation schedule that grew.
GROWN = Horizon(total=16, epoch_ends=(5, 10, 13))


@pytest.mark.parametrize(
    ("written", "amount", "unit"),
    [
        (500, 500, "steps"),
        ("500 steps", 500, "steps"),
        ("1 epoch", 1, "epochs"),
        ("2.5 epochs", 2.5, "epochs"),
        ("5%", 5, "percent"),
        ("0.5 %", 0.5, "percent"),
        (0, 0, "steps"),
    ],
)
def test_reads_what_users_write_and_prints_it_back(written: object, amount: float, unit: str) -> None:
    duration = as_duration("at", written)
    assert (duration.amount, duration.unit) == (amount, unit)
    assert as_duration("at", eval(repr(duration))) == duration


@pytest.mark.parametrize(
    "bad", [0.05, 1.0, -1, True, None, "5", "five epochs", "-1 epochs", "101%", "1.5 steps", "", [], "5 %%"]
)
def test_refuses_anything_else(bad: object) -> None:
    with pytest.raises((TypeError, ValueError), match="at must be|percentage of at"):
        as_duration("at", bad)


def test_epochs_follow_the_runs_own_table() -> None:
    assert [GROWN.step_at(e) for e in (0, 1, 2, 3, 4, 5)] == [0, 5, 10, 13, 16, 19]
    assert GROWN.step_at(2.5) == 11.5
    for step in range(20):
        assert GROWN.step_at(GROWN.epoch_at(step)) == pytest.approx(step)


def test_length_in_epochs_counts_from_where_it_starts() -> None:
    assert GROWN.end(0, as_duration("x", "1 epoch")) == 5
    assert GROWN.end(10, as_duration("x", "1 epoch")) == 13


def test_percent_is_of_the_whole_run_wherever_it_starts() -> None:
    assert GROWN.end(0, as_duration("x", "25%")) == 4
    assert GROWN.end(10, as_duration("x", "25%")) == 14
    assert Horizon(17).end(0, as_duration("x", "5%")) == 1  # 0.85 steps


def test_unknown_length_is_an_error_that_says_why() -> None:
    endless = Horizon(None, None, "the training loader has no length")
    assert endless.end(3, Duration(4, "steps")) == 7
    for written in ("5%", "2 epochs"):
        with pytest.raises(ValueError, match="the training loader has no length"):
            endless.end(0, as_duration("x", written))
