"""A list of techniques that knows the sources of its settings: the table, the YAML, and what changes them."""

from __future__ import annotations

import copy
import pickle

import pytest
import yaml
from lightning.pytorch import Trainer
from torch import nn

import lightning_tricks as lt
from lightning_tricks.recipes import Recipe
from lightning_tricks.recipes.recipe import GIVEN
from tests.toys import Toy
from tests.yaml_trainer import yaml_trainer


def recipe(**settings):
    clip = lt.GradientClip(max_norm=0.25, **settings)
    return Recipe(
        "both", [(clip, {"max_norm": "A, 1"}), (lt.WarmupCosine(warmup=3, final=0.0), {"final": "B"})]
    )


def test_rows_are_the_settings_with_a_source_and_those_that_are_no_defaults():
    assert recipe(params="head").rows() == [
        ("GradientClip", "max_norm", "0.25", "A, 1"),
        ("GradientClip", "params", "'head'", GIVEN),
        ("WarmupCosine", "warmup", "3", GIVEN),
        ("WarmupCosine", "final", "0.0", "B"),
    ]


def test_a_source_is_for_the_value_that_it_gave():
    changed = recipe()
    changed[0].max_norm = 0.5
    changed[1] = lt.WarmupCosine(final=0.5)
    assert changed.rows() == [
        ("GradientClip", "max_norm", "0.5", GIVEN),
        ("WarmupCosine", "final", "0.5", GIVEN),
    ]


def test_it_is_a_list():
    found = recipe()
    assert isinstance(found, list)
    del found[0]
    assert [row[0] for row in found.rows()] == ["WarmupCosine"] * 2
    found.insert(0, lt.EMAWeights())
    assert type(found[0]) is lt.EMAWeights
    assert {row[0] for row in found.rows()} == {"WarmupCosine"}  # of EMAWeights all is default
    assert "- class_path: lightning_tricks.EMAWeights\n    - class_path" in found.yaml()


def test_what_the_trainer_appends_is_not_shown():
    found = recipe()
    runner = Trainer(callbacks=found, logger=False, accelerator="cpu")
    assert len(runner.callbacks) > 2
    assert len(found) > 2
    assert {row[0] for row in found.rows()} == {"GradientClip", "WarmupCosine"}
    assert found.yaml() == recipe().yaml()


@pytest.mark.parametrize("through", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_copies_print_alike(through):
    assert str(through(recipe())) == str(recipe())


def test_two_of_a_class_are_told_apart_by_their_labels():
    first, second = lt.WeightDecay(label="a", strength=0.1), lt.WeightDecay(label="b", strength=0.1)
    rows = Recipe("two", [(first, {"strength": "A"}), (second, {})]).rows()
    assert [(row[0], row[1], row[3]) for row in rows] == [
        ("WeightDecay[a]", "strength", "A"),
        ("WeightDecay[a]", "label", GIVEN),
        ("WeightDecay[b]", "strength", GIVEN),
        ("WeightDecay[b]", "label", GIVEN),
    ]


@pytest.mark.parametrize(
    "technique",
    [
        lt.GradientClip(max_norm=lt.Percentile(10), params=("head", "body.*")),
        lt.GradientClip(max_norm=1e-5),
        lt.EMAWeights(decay="0.9 * constant()", device=None, buffers="average"),
        lt.LearningRate(schedule=lt.warmup("5%") >> lt.cosine(to=0.1)),
        lt.ProgressiveUnfreeze(stages=["head", ("body.0", "body.1")], at=lt.Plateau("val_loss")),
        lt.WeightDecay(strength=0.1, label="small # part: 'x'"),
    ],
)
def test_yaml_rebuilds_the_techniques(technique, tmp_path):
    path = tmp_path / "techniques.yaml"
    path.write_text(Recipe("one", [(technique, {})]).yaml())
    (built,) = (
        each for each in yaml_trainer(["--config", str(path)], Toy).callbacks if type(each) is type(technique)
    )
    assert repr(built) == repr(technique).replace(
        repr(lt.warmup("5%") >> lt.cosine(to=0.1)), _as_text(technique)
    )


def _as_text(technique):
    """A schedule comes back as the text that it is written by."""
    return repr(repr(getattr(technique, "schedule", "")))


def test_sources_stand_beside_the_settings_as_comments():
    text = recipe().yaml()
    assert "max_norm: 0.25  # A, 1\n" in text
    (clip, _) = yaml.safe_load(text)["trainer"]["callbacks"]
    assert clip == {"class_path": "lightning_tricks.GradientClip", "init_args": {"max_norm": 0.25}}


def test_what_yaml_cannot_hold_is_refused():
    assert "params: torch.nn.modules.linear.Linear  # yours" in recipe(params=nn.Linear).yaml()
    with pytest.raises(ValueError, match="params must be text, .* to be written down, got <function"):
        recipe(params=lambda name, _: name == "head").yaml()


def test_a_source_of_no_setting_is_refused():
    with pytest.raises(ValueError, match="GradientClip has no setting 'max_nrom' for 'A'"):
        Recipe("wrong", [(lt.GradientClip(), {"max_nrom": "A"})])
