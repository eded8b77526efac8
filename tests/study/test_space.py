"""What a search may vary: read, refused, counted, and gone through."""

from __future__ import annotations

import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from lightning_tricks import HalfLife
from lightning_tricks.study.dimensions import Choices, dimension
from lightning_tricks.study.space import Space

TEXT = """
model.init_args.lr: {low: 1e-3, high: 0.1, log: true}
trainer.max_epochs: [5, 10]
techniques:
  GradientClip: {optional: true}
  EMAWeights: {optional: true, decay: [0.9, 0.99], every: {low: 1, high: 3}}
  Lookahead: {alpha: {low: 0.25, high: 0.75, step: 0.25}}
"""


def test_a_file_is_read_and_written(tmp_path):
    (tmp_path / "space.yaml").write_text(TEXT)
    space = Space.read(tmp_path / "space.yaml")
    found = {name: each.distribution() for name, each in space.dimensions.items()}
    on = CategoricalDistribution([True, False])
    assert found == {
        "model.init_args.lr": FloatDistribution(0.001, 0.1, log=True),  # which YAML takes for text
        "trainer.max_epochs": CategoricalDistribution([5, 10]),
        "GradientClip": on,
        "EMAWeights": on,
        "EMAWeights.decay": CategoricalDistribution([0.9, 0.99]),
        "EMAWeights.every": IntDistribution(1, 3),
        "Lookahead.alpha": FloatDistribution(0.25, 0.75, step=0.25),
    }
    (tmp_path / "again.yaml").write_text(space.to_yaml())
    assert Space.read(tmp_path / "again.yaml") == space


def test_points_are_counted_and_gone_through_once():
    given = yaml.safe_load(TEXT)
    assert Space.of(given).size is None
    del given["model.init_args.lr"]
    space = Space.of(given)
    assert space.size == 2 * 2 * (2 * 3 + 1) * 3
    default = {name: each.values_of(name)[-1] for name, each in space.dimensions.items()}
    points = list(space.points(default))
    assert len({tuple(point.items()) for point in points}) == len(points) == space.size
    off = [point for point in points if not point["EMAWeights"]]
    assert {(point["EMAWeights.decay"], point["EMAWeights.every"]) for point in off} == {(0.99, 3)}


def test_values_of_any_kind_are_drawn_and_shown():
    policy, other = HalfLife("1 epoch"), HalfLife("2 epochs")
    choices = Choices((0.9, True, None, "5%", policy, other))
    for value in choices.values:
        assert choices.drawn(choices.as_drawn(value)) is value
    assert choices.shown(policy) == "HalfLife(half_life='1 epoch')"
    assert choices.holds(True)
    assert not choices.holds(1)


@pytest.mark.parametrize(
    ("given", "value", "holds"),
    [
        ({"low": 1, "high": 5}, 3, True),
        ({"low": 1, "high": 5}, 3.0, False),
        ({"low": 1, "high": 5}, 6, False),
        ({"low": 1, "high": 5}, True, False),
        ({"low": 1, "high": 5, "step": 2}, 2, False),
        ({"low": 0.0, "high": 0.3, "step": 0.1}, 0.3, True),
        ({"low": 0.1, "high": 1.0, "log": True}, "0.5", False),
    ],
)
def test_what_a_range_holds(given, value, holds):
    assert dimension("x", given).holds(value) is holds


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "space must be a mapping"),
        ({}, "space must vary at least one"),
        ({"lr": 0.1}, "lr must be a list of choices or have low and high, got 0.1"),
        ({"lr": []}, "lr must have different choices"),
        ({"lr": [1, 1.0]}, "lr must have different choices"),
        ({"lr": {"low": 1.0}}, "lr must have low and high"),
        ({"lr": {"low": 1.0, "hihg": 2.0}}, "lr's keys must be one of .* did you mean 'high'"),
        ({"lr": {"low": 1.0, "high": 0.5}}, "lr.high must be above low, 1.0, got 0.5"),
        ({"lr": {"low": 0.0, "high": 0.5, "log": True}}, "lr.low must lie in"),
        ({"lr": {"low": 0.1, "high": 0.5, "log": "yes"}}, "lr.log must be True or False"),
        ({"lr": {"low": "low", "high": 0.5}}, "lr.low must be a number, got 'low'"),
        ({"lr": {"low": 0.0, "high": 0.5, "step": 0.2}}, "lr.step must lead from low, 0.0, to high, 0.5"),
        ({"lr": {"low": 0.1, "high": 0.5, "step": 0.1, "log": True}}, "lr.step must be left out with log"),
        ({"techniques": {"EMAWeights": {}}}, "EMAWeights must be optional or have settings"),
        ({"techniques": {"EMAWeights": None}}, "techniques.EMAWeights must be a mapping"),
        ({"techniques": {"EMAWeights": {"optional": 1}}}, "EMAWeights.optional must be True or False"),
    ],
)
def test_what_is_no_space_is_told_by_name(given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Space.of(given)
