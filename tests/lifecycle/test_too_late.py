"""What would begin only after the end of the run is told before its first batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

import lightning_tricks as lt
from lightning_tricks.core.duration import Horizon, as_duration
from lightning_tricks.lifecycle.clock import Clock
from lightning_tricks.lifecycle.technique import Technique
from tests.toys import Loader, Toy, trainer

RUN = "but the run has 15 steps: it has no effect"
LATE: list[tuple[Callable[[], Technique], str]] = [
    (lambda: lt.EMAWeights(start=16), f"EMAWeights: start comes at step 16, {RUN}"),
    (lambda: lt.SWAWeights(start="4 epochs"), f"SWAWeights: start comes at step 20, {RUN}"),
    (lambda: lt.SWAWeights(every="3.5 epochs"), f"SWAWeights: every comes at step 18, {RUN}"),
    (lambda: lt.LAWA(k=2, every=100), f"LAWA: every comes at step 100, {RUN}"),
    (lambda: lt.Lookahead(k=16), f"Lookahead: k comes at step 16, {RUN}"),
    (
        lambda: lt.PostHocEMA(snapshot_every="4 epochs"),
        f"PostHocEMA: snapshot_every comes at step 20, {RUN}",
    ),
    (lambda: lt.Freeze(params="body", at="3 epochs"), f"Freeze: at comes at step 15, {RUN}"),
    (
        lambda: lt.ProgressiveUnfreeze(stages=["head", "body.1", "body.0"], at=10),
        f"ProgressiveUnfreeze, stage 3: at comes at step 20, {RUN}",
    ),
    (
        lambda: lt.WeightFusion(collect=lt.EverySteps(8, k=2), method=lt.Slerp(0.5), keep="always"),
        "WeightFusion will leave the weights as they are: EverySteps(n=8, k=2) collects 1 snapshots in this "
        "run, but Slerp(t=0.5) needs 2",
    ),
]


class First(Callback):
    """Notes what was warned of before the first batch."""

    def __init__(self, heard: list[warnings.WarningMessage]) -> None:
        self.heard = heard
        self.before: list[str] | None = None

    def on_train_batch_start(self, *_: Any) -> None:
        if self.before is None:
            said = [str(each.message) for each in self.heard]
            self.before = [text for text in said if ", but " in text]


@pytest.mark.parametrize(("build", "told"), LATE, ids=[told.partition(",")[0] for _, told in LATE])
def test_it_is_told_before_the_first_batch(build: Callable[[], Technique], told: str, tmp_path: Path) -> None:
    assert before_the_first_batch(build(), tmp_path) == [told]


def before_the_first_batch(technique: Technique, root: Path) -> list[str] | None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        first = First(heard)
        trainer(technique, first, default_root_dir=root).fit(Toy(), Loader())
    return first.before


def test_what_the_last_step_brings_is_not_told(tmp_path: Path) -> None:
    last = [
        lt.EMAWeights(start=15),
        lt.SWAWeights(start="3 epochs"),
        lt.LAWA(k=2, every=15),
        lt.Lookahead(k=15),
        lt.PostHocEMA(snapshot_every="3 epochs"),
        lt.WeightFusion(collect=lt.LastEpochs(3), method=lt.Average((0.25, 0.25, 0.5)), keep="always"),
    ]
    for technique in last:
        assert before_the_first_batch(technique, tmp_path) == []


def test_what_comes_within_the_run_or_may_is_not() -> None:
    clock = Clock()
    clock.lay(Horizon(100, (20, 40)))
    late = {
        at: clock.too_late(as_duration("at", at)) is not None for at in (100, 101, "5 epochs", "6 epochs")
    }
    assert late == {100: False, 101: True, "5 epochs": False, "6 epochs": True}
    last = as_duration("at", 100)
    assert (
        clock.too_late(last, for_steps=True)
        == "at comes at step 100, but the run has 100 steps: it has no effect"
    )
    assert clock.too_late(as_duration("at", 99), for_steps=True) is None
    for horizon in (Horizon(None, (20, 40)), Horizon(None)):
        clock.lay(horizon)
        assert clock.too_late(as_duration("at", 10**9)) is None
    clock.lay(Horizon(100))
    assert clock.too_late(as_duration("at", "9 epochs")) is None  # nobody knows how long one is
