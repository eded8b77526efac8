"""Techniques written as LightningCLI reads them."""

from __future__ import annotations

import pytest
import yaml
from torch import nn

import lightning_tricks as lt
from lightning_tricks.lifecycle.technique import Technique
from tests.toys import Toy
from tests.yaml_trainer import yaml_trainer


def read_back(text: str) -> list[Technique]:
    """Return the techniques that LightningCLI builds of a configuration file."""
    config = yaml.safe_load(text)
    runner = yaml_trainer({"trainer": {**config["trainer"], "logger": False}}, Toy)
    return [callback for callback in runner.callbacks if isinstance(callback, Technique)]


def test_several_come_back_in_their_order() -> None:
    techniques = [
        lt.WarmupCosine(warmup="5%"),
        lt.EMAWeights(decay=0.9 * lt.constant(), label="slow"),
        lt.ProgressiveUnfreeze(stages=["head", ("body", "x*")], at=lt.Plateau("val_loss", mode="max")),
        lt.WeightFusion(collect=lt.BestK(3), monitor="val_loss", mode="min"),
    ]
    text = lt.to_yaml(*techniques)
    assert [type(each) for each in read_back(text)] == [type(each) for each in techniques]
    assert lt.to_yaml(*read_back(text)) == text


def test_a_schedule_of_stages_is_written_edited_and_read_back() -> None:
    net = nn.ModuleDict({"body": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "head": nn.Linear(2, 1)})
    proposed = lt.ProgressiveUnfreeze(stages=lt.propose_stages(net, 3), at=["1 epoch", "30%"], warmup=5)
    text = lt.to_yaml(proposed)
    assert repr(read_back(text)) == repr([proposed])
    edited = text.replace("- 30%", "- 50%").replace("- body.0", "- - body.0\n        - torch.nn.LayerNorm")
    assert edited.count("\n") == text.count("\n") + 1
    expected = lt.ProgressiveUnfreeze(
        stages=["head", "body.1", ("body.0", "torch.nn.LayerNorm")], at=["1 epoch", "50%"], warmup=5
    )
    assert repr(read_back(edited)) == repr([expected])


def test_types_are_written_by_their_paths_and_mean_the_same() -> None:
    (freeze,) = read_back(lt.to_yaml(lt.Freeze(params=(nn.BatchNorm1d, "head"))))
    assert freeze.params == ("torch.nn.modules.batchnorm.BatchNorm1d", "head")


class Outer:
    class Inner(nn.Linear):
        """Has a path that no import finds."""


def local() -> type[nn.Module]:
    class Local(nn.Linear):
        pass

    return Local


@pytest.mark.parametrize(
    ("technique", "error", "message"),
    [
        (
            lt.Freeze(params=("x", lambda *_: True)),
            ValueError,
            r"Freeze.params\[1\] must be text, .*, got <func",
        ),
        (
            lt.Freeze(params=(nn.Linear, Outer.Inner)),
            ValueError,
            r"Freeze.params\[1\] must have a type that a module offers .*Outer.Inner'>: define it at",
        ),
        (lt.Freeze(params=local()), ValueError, r"Freeze.params must have .*local.<locals>.Local'>: define"),
        (nn.ReLU(), TypeError, r"to_yaml must be given techniques, got ReLU\(\)"),
    ],
)
def test_what_cannot_be_written_is_named(technique, error, message) -> None:
    with pytest.raises(error, match=message):
        lt.to_yaml(technique)
