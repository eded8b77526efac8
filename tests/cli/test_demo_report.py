import math

import matplotlib.image
import pytest
from rich.console import Console

from lightning_tricks.cli.demo_record import Record, Score
from lightning_tricks.cli.demo_report import Arm, Deed, deed_table, draw, score_table, verdict

PHASES = ("first", "second")


def record(*scores, rates):
    """A phase of two steps an epoch, with these scores."""
    steps = 2 * len(scores)
    return Record(
        rates={name: [rate] * steps for name, rate in rates.items()},
        norms=[2.0] * steps,
        clipped_norms=[1.0] * steps,
        trainable=[1000] * steps,
        seconds=[0.001, 0.012, 0.5],
        epoch_ends=list(range(2, steps + 1, 2)),
        live=[Score(score, 1.0) for score in scores],
        validated=[Score(score + 0.01, 0.9) for score in scores],
    )


@pytest.fixture
def plain():
    records = [record(0.5, 0.6, rates={"all layers": 0.1}), record(0.9, 0.5, rates={"all layers": 0.1})]
    return Arm("plain", records, {"raw": [Score(0.6, 1.0), Score(0.5, 1.25)]})


@pytest.fixture
def arm():
    second = record(0.7, 0.8, rates={"head": 0.1, "stem": math.nan})
    scores = {
        "raw": [Score(0.7, 0.9), Score(0.8, 0.8)],
        "averaged": [Score(0.71, 0.88), Score(0.81, 0.77)],
        "fused": [None, Score(0.75, 0.85)],
    }
    deeds = [
        Deed("first", "GradientClip", {"steps": 4, "clipped": 3}),
        Deed("first", "EMAWeights", {"decay": 0.96386}),
        Deed("second", "WeightFusion", {"snapshots": 123456, "kept": True, "why": "asked"}),
    ]
    return Arm("techniques", [record(0.6, 0.7, rates={"all layers": 0.1}), second], scores, deeds)


def lines(table, width=100):
    console = Console(width=width, force_terminal=False)
    with console.capture() as captured:
        console.print(table)
    return [" ".join(line.split()) for line in captured.get().splitlines()]


def test_a_note_stands_under_the_table(plain, arm):
    with_note = lines(score_table([plain, arm], PHASES, note="Too short."))
    assert with_note[-2:] == ["Too short.", ""]
    assert "Too short." not in lines(score_table([plain, arm], PHASES))


def test_the_table_has_a_row_for_each_set_of_weights(plain, arm):
    assert lines(score_table([plain, arm], PHASES))[-5:-1] == [
        "plain raw 60.0% 1.000 12.0 ms 50.0% 1.250 12.0 ms",
        "techniques raw 70.0% 0.900 12.0 ms 80.0% 0.800 12.0 ms",
        "averaged 71.0% 0.880 81.0% 0.770",
        "fused 75.0% 0.850",
    ]


def test_the_tables_fit_80_columns(plain, arm):
    for table in (score_table([plain, arm], ("8 digits", "all ten")), deed_table(arm)):
        assert "…" not in "".join(lines(table, width=80))


def test_deeds_are_told_in_the_techniques_own_words(arm):
    assert lines(deed_table(arm))[-4:-1] == [
        "first GradientClip steps 4, clipped 3",
        "EMAWeights decay 0.964",
        "second WeightFusion snapshots 123,456, kept yes, why asked",
    ]


def test_the_verdict_names_the_best_weights_and_the_best_epochs(plain, arm):
    assert verdict(plain, arm, 100) == (
        "After the last epoch: averaged weights 81.0%, plain run 50.0%. "
        "At the best epoch: averaged weights 81.0% (epoch 2 of 2), plain run 90.0% (epoch 1 of 2). "
        "One seed and 100 images: the standard error of an accuracy is 5.0 points."
    )


def test_the_summary_holds_the_last_scores(arm):
    assert arm.summary() == {
        "final/accuracy/raw": 0.8,
        "final/loss/raw": 0.8,
        "final/accuracy/averaged": 0.81,
        "final/loss/averaged": 0.77,
        "final/accuracy/fused": 0.75,
        "final/loss/fused": 0.85,
    }


def test_the_figure_is_drawn_without_a_display_or_a_trace(plain, arm, tmp_path, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    before = dict(matplotlib.rcParams)
    draw(plain, arm, PHASES, tmp_path / "figure.png")
    assert matplotlib.image.imread(tmp_path / "figure.png").shape[:2] == (930, 1425)
    assert dict(matplotlib.rcParams) == before
