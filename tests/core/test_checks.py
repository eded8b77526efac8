import math

import pytest

from lightning_tricks.core import checks


@pytest.mark.parametrize("value", [0, 1, 0.5])
def test_range_includes_its_ends(value: float) -> None:
    assert checks.in_range("x", value, 0.0, 1.0) == value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-0.1, r"x must lie in \[0.0, 1.0\), got -0.1"),
        (1.0, r"x must lie in \[0.0, 1.0\), got 1.0"),
        (math.nan, "x must be a number, got nan"),
        ("a", "x must be a number, got 'a'"),
        (True, "x must be a number, got True"),
        (None, "x must be a number, got None"),
    ],
)
def test_range_says_name_rule_and_value(value: object, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        checks.in_range("x", value, 0.0, 1.0, open_high=True)


def test_whole_flag_and_choice() -> None:
    assert checks.whole("n", 3, 1) == 3
    assert checks.flag("f", False) is False
    for call, message in (
        (lambda: checks.whole("n", 2.0), "n must be a whole number, got 2.0"),
        (lambda: checks.whole("n", True), "n must be a whole number, got True"),
        (lambda: checks.whole("n", 0, 1), "n must be at least 1, got 0"),
        (lambda: checks.flag("f", 1), "f must be True or False, got 1"),
        (lambda: checks.one_of("m", "avreage", ["average", "live"]), "did you mean 'average'"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            call()
