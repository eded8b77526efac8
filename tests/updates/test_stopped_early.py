from __future__ import annotations

from typing import Any

import pytest

from lightning_tricks import LearningRate, WarmupCosine
from tests.toys import Loader, Stops, Toy, trainer

TOLD = "the run ended at step 7, with {} of the base rate, before the schedule does at step {}"


@pytest.mark.parametrize(
    ("technique", "told"),
    [
        # (1 + cos(pi 7 / 15)) / 2, on the way to the end of the three epochs of five steps
        (WarmupCosine(warmup=0), TOLD.format("0.552", 15)),
        (LearningRate(schedule="linear(to=0, over=10)"), TOLD.format("0.3", 10)),
        (LearningRate(schedule="linear(to=0, over=7)"), ""),
        (LearningRate(schedule="0.5"), ""),
    ],
)
def test_a_run_that_is_stopped_before_its_schedule_ends_says_how_far_the_rate_came(
    technique: Any, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(technique, Stops(after=7), min_steps=7).fit(Toy(), Loader())
    assert capsys.readouterr().out == (f"{technique.state_key}: {told}\n" if told else "")


def test_a_run_of_full_length_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    trainer(WarmupCosine()).fit(Toy(), Loader())
    assert capsys.readouterr().out == ""
