"""Every kind of method at the end of a run, and written down."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import lightning_tricks as lt
from lightning_tricks.fusion.methods import FusionMethod
from tests.fusion.runs import Epochs, always, fit
from tests.toys import Toy, assert_equal, weights
from tests.yaml_trainer import yaml_trainer

TRAINED = {
    "Slerp": lt.Slerp(0.25),
    "Ties": lt.Ties(0.5, weights=(1.0, 2.0)),
    "DareTies": lt.DareTies(0.5),
    "ModelStock": lt.ModelStock(),
    "SimilarityWeighted": lt.SimilarityWeighted(to="others"),
    "FedAdam": lt.FedAdam((1, 3)),
    "Layerwise": lt.Layerwise(
        {
            "body": lt.OverDepth((lt.TaskArithmetic(scale=0.5), lt.TaskArithmetic(scale=1.5))),
            "*": lt.TrimmedMean(0.2),
        }
    ),
}


@pytest.mark.parametrize("name", list(TRAINED))
def test_in_training_the_oldest_snapshot_is_the_base(name: str, tmp_path: Path) -> None:
    method, spy = TRAINED[name], Epochs()
    module, _ = fit(tmp_path, spy, always(method=method, collect=lt.LastEpochs(method.count or 3)))
    assert_equal(weights(module), method.fuse(spy.ends[-(method.count or 3) :]))


def test_yaml_builds_nested_methods_as_they_were() -> None:
    fusion = always(method=TRAINED["Layerwise"])
    text = lt.to_yaml(fusion)
    runner = yaml_trainer({"trainer": {**yaml.safe_load(text)["trainer"], "logger": False}}, Toy)
    (again,) = [each for each in runner.callbacks if isinstance(each, lt.WeightFusion)]
    assert again.method == fusion.method and lt.to_yaml(again) == text


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (lt.Layerwise({"head": lt.Average()}), "recipe must match every tensor, .* 'body.0.weight'"),
        (lt.OverDepth((lt.Ties(0.1), lt.Ties(0.9))), "layers must tell .* but 'head.weight', 'head.bias'"),
    ],
)
def test_what_cannot_be_fused_is_refused_before_training(
    method: FusionMethod, message: str, tmp_path: Path
) -> None:
    spy = Epochs()
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, spy, always(method=method))
    assert spy.steps == []


def test_too_few_snapshots_are_refused_at_once() -> None:
    message = r"collect must keep at least 3 snapshots for ModelStock\(base=None\), got LastEpochs\(k=2\)"
    with pytest.raises(ValueError, match=message):
        always(method=lt.ModelStock(), collect=lt.LastEpochs(2))
