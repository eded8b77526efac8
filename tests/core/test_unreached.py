"""What of a schedule a run ends before."""

from __future__ import annotations

import pytest

from lightning_tricks.core.duration import Horizon
from lightning_tricks.core.notation import parse
from lightning_tricks.core.unreached import unreached


# Found by hand for a run of 10 steps in epochs of 4.
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("warmup(9) >> cosine()", []),
        ("warmup(10) >> cosine()", ["cosine(to=0.0) begins at step 10"]),
        ("3 * (warmup('3 epochs') >> cosine())", ["cosine(to=0.0) begins at step 12"]),
        ("warmup(11) >> constant()", ["constant() begins at step 11"]),
        ("cosine(over='100%') >> constant()", []),
        ("0.7 * (cosine(over='100%', to=0.3) >> constant())", []),
        ("cosine(over='100%') >> constant(0.5)", ["constant(0.5) begins at step 10"]),
        ("cosine(over=11) >> constant()", ["constant() begins at step 11"]),
        (
            "warmup(4) >> linear(to=0.5, over=8) >> multistep([13, 20])",
            ["multistep([13, 20]) begins at step 12"],
        ),
        ("multistep([3, 9])", []),
        (
            "multistep(['2 epochs', '3 epochs'])",
            ["milestone '3 epochs' of multistep(['2 epochs', '3 epochs'])"],
        ),
        ("multistep([10, '100%'])", ["milestone 10 of", "milestone '100%' of"]),
        ("cosine(over=20)", []),
        ("cosine_restarts(4, over=30)", []),
        ("constant(2.0)", []),
    ],
)
def test_against_lists_by_hand(text: str, told: list[str]) -> None:
    found = unreached(parse(text).resolve(Horizon(10, (4, 8, 12))))
    assert len(found) == len(told)
    for line, start in zip(found, told, strict=True):
        assert line.startswith(start)
        assert line.endswith(", but the run has 10 steps: it has no effect")


def test_a_run_without_known_length_ends_before_nothing() -> None:
    assert unreached(parse("warmup(2000) >> multistep([5000])").resolve(Horizon(None))) == []


def test_a_run_that_grows_reaches_more() -> None:
    schedule = parse("warmup('50%') >> constant(over=10) >> cosine()")
    before = schedule.resolve(Horizon(10))
    assert unreached(before) != []
    assert unreached(schedule.resolve(Horizon(100), kept=before.kept(3))) == []
