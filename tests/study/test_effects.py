"""Effects and costs, by hand from made-up trials; the table, the Markdown and the picture of them."""

from __future__ import annotations

import json
from dataclasses import replace
from statistics import fmean

import matplotlib.figure
import matplotlib.image
import pytest
import torch
from rich.console import Console

from lightning_tricks.study.arms import arms
from lightning_tricks.study.bootstrap import Estimate, paired_effect
from lightning_tricks.study.effects import Cost, Effects, Outcome
from lightning_tricks.study.report import draw_effects, draw_panels, markdown, notes, rich_table

NAMES = ("EMA", "clip")
# Of seeds 0 and 1, the loss, a step in ms and the memory in MiB.
FOUND = {
    (): [(1.0, 10.0, 50.0), (2.0, 20.0, 60.0)],
    ("EMA",): [(0.75, 11.0, 52.0), (1.5, 24.0, 64.0)],
    ("clip",): [(1.25, 10.0, 50.0), (1.75, 20.0, 60.0)],
    NAMES: [(0.5, 12.0, 52.0), (1.25, 26.0, 64.0)],
}


def outcome(names, seed, host="here", **changes):
    value, step, memory = FOUND[names][seed]
    result = {"value": value, "step_ms": step, "memory_mib": memory, "device": "cpu", "host": host}
    return Outcome(arms(NAMES)[names], names, seed, {**result, **changes})


def effects(mode="min", *outcomes):
    found = outcomes or tuple(outcome(names, seed) for names in FOUND for seed in (0, 1))
    return Effects("val_loss", mode, NAMES, found, 8)


def test_effects_by_hand():
    together, ema, clip = effects().rows
    assert together.alone == Estimate(0.625, 0.5, 0.75, 2)
    assert together.among is None
    assert ema.alone == Estimate(0.375, 0.25, 0.5, 2)
    assert ema.among == Estimate(0.625, 0.5, 0.75, 2)  # all against clip alone
    assert clip.alone == Estimate(0.0, -0.25, 0.25, 2)
    assert not clip.alone.is_clear
    assert ema.cost == Cost(pytest.approx(1.15), 1.1, 1.2, 3.0)
    assert together.cost == Cost(pytest.approx(1.25), 1.2, 1.3, 3.0)
    assert clip.cost == Cost(1.0, 1.0, 1.0, 0.0)


def test_where_more_is_better_the_sign_is_the_other():
    assert effects("max").rows[1].alone == Estimate(-0.375, -0.5, -0.25, 2)


def test_what_single_precision_cannot_tell_apart_is_the_same():
    near = [Outcome("", names, 0, {"value": value, "host": "", "device": ""}) for names, value in NEAR]
    assert [row.alone.mean for row in effects("max", *near).rows[1:]] == [0.0, pytest.approx(1e-5)]


NEAR = [((), 0.9333333), (("EMA",), 0.93333334), (("clip",), 0.9333433)]


def test_only_pairs_of_one_seed_are_compared():
    dead = Outcome("only EMA", ("EMA",), 0, None, "RuntimeError: no more")
    found = effects("min", outcome((), 0), outcome((), 1), dead, outcome(("EMA",), 1))
    together, ema, clip = found.rows
    assert together.alone is clip.alone is clip.cost is None
    assert (ema.alone.mean, ema.alone.pairs) == (0.5, 1)
    assert found.dead == [dead]


def test_costs_are_compared_on_one_machine():
    found = effects("min", outcome((), 0), outcome((), 1, "there"), outcome(("EMA",), 0, "there"))
    assert found.rows[1].cost is None
    assert found.rows[1].alone is not None


def test_arms_of_one_technique_are_two():
    assert arms(["a"]) == {(): "none", ("a",): "all"}
    assert len(arms(["a", "b"])) == 4
    assert len(arms(["a", "b", "c", "d"])) == 10
    alone = Effects("val_loss", "min", ("EMA",), (outcome((), 0), outcome(("EMA",), 0)), 2)
    assert [row.name for row in alone.rows] == ["EMA"]
    assert alone.rows[0].alone.mean == 0.25


def test_the_tables_say_it():
    found = effects()
    text = markdown(found)
    assert "| EMA | +0.375 (+0.25 to +0.5) | +0.625 (+0.5 to +0.75) | 1.15 (1.10 to 1.20) | +3.0 |" in text
    assert "| clip | +0 (-0.25 to +0.25) |" in text
    assert "Without any: 1.5 on average" in text
    with (console := Console(width=80)).capture() as shown:
        console.print(rich_table(found))
    assert "+0.375" in shown.get()
    assert max(map(len, shown.get().splitlines())) <= 80
    labelled = replace(found, names=("EMA[short]", "EMA[long]"))
    with console.capture() as shown:
        console.print(rich_table(labelled))
    assert "EMA[short]" in shown.get() and "EMA[long]" in shown.get()


def test_with_few_seeds_the_interval_is_said_to_be_narrow():
    assert "in about 50 of 100 cases" in (told := " ".join(notes(effects())))
    assert "its 50 % interval" in told
    figure = matplotlib.figure.Figure()
    draw_panels(figure, effects())
    assert figure.axes[0].get_xlabel().endswith("better (50 % interval)")
    draws = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)).tolist()
    held = [found.low <= 0.0 <= found.high for found in (paired_effect(each, [0.0, 0.0]) for each in draws)]
    assert fmean(held) == pytest.approx(0.5, abs=0.05)
    assert len(notes(replace(effects(), outcomes=(outcome((), 0), outcome(("EMA",), 0))))) == 3  # none of 1


def test_what_died_and_what_is_missing_is_said_under_the_table():
    dead = Outcome("only EMA", ("EMA",), 0, None, "RuntimeError: a | b")
    found = effects("min", outcome((), 0), outcome((), 1), dead, outcome(("EMA",), 1))
    assert "Died: only EMA, seed 0: RuntimeError: a | b" in notes(found)
    assert "4 of 8 trials have ended." in notes(found)
    assert "RuntimeError: a / b" in markdown(found)  # a line would end the table's cell
    assert "+0.5 [1 of 2]" in markdown(found)


def test_it_is_plain_and_json_knows_it():
    found = effects("min", outcome((), 0), outcome(("EMA",), 0))
    read = json.loads(json.dumps(found.plain(), allow_nan=False))
    assert read["effects"][1]["alone"] == {"mean": 0.25, "low": None, "high": None, "pairs": 1}
    assert read["trials"][0]["result"]["value"] == 1.0


def test_the_picture_has_a_place_for_each_technique(tmp_path):
    draw_effects(effects(), tmp_path / "two.png")
    many = replace(effects(), names=tuple("abcdefgh"), outcomes=(outcome((), 0),))
    draw_effects(many, tmp_path / "many.png")
    two, more = (matplotlib.image.imread(tmp_path / name) for name in ("two.png", "many.png"))
    assert two.shape[1] == more.shape[1] == 1350
    assert more.shape[0] - two.shape[0] == 6 * 75
    assert (two.reshape(-1, 4)[:, :3].std(0) > 0.1).all()  # is not blank


def test_with_few_seeds_nothing_is_bold():
    for count, bold in ((2, False), (4, False), (5, True)):
        found = [
            replace(outcome(names, seed % 2), seed=seed) for seed in range(count) for names in ((), ("EMA",))
        ]
        found = replace(effects(), outcomes=tuple(found))
        assert ("**+" in markdown(found)) == bold
        assert ("bold" in markdown(found)) == bold


def test_the_picture_of_one_seed_promises_no_interval():
    figure = matplotlib.figure.Figure()
    draw_panels(figure, replace(effects(), outcomes=(outcome((), 0), outcome(("EMA",), 0))))
    panel = figure.axes[0]
    assert panel.get_title() == "What it brings (1 seed)"
    assert "interval" not in panel.get_xlabel()


def test_in_the_picture_nothing_lies_on_something_else():
    one = replace(effects(), names=("EMA",))
    dead = replace(effects(), names=("EMA", "gone"), outcomes=(outcome((), 0), outcome(("EMA",), 0)))
    for found in (one, dead):
        figure = matplotlib.figure.Figure((9.0, 3.1), layout="constrained")
        draw_panels(figure, found)
        figure.canvas.draw()
        panel = figure.axes[0]
        assert not panel.get_legend().get_window_extent().overlaps(panel.xaxis.label.get_window_extent())
        assert panel.get_ylim() == (len(found.rows) - 0.5, -0.5)  # also for rows without a bar
