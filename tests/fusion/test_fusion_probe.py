"""WeightFusion with methods that look at the run's own data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy

import lightning_tricks as lt
from lightning_tricks.core.functional import in_evaluation
from lightning_tricks.fusion.methods import FusionMethod
from tests.fusion.runs import Epochs, always, fit
from tests.toys import Loader, Toy, TwoOptimizers, assert_equal, weights
from tests.yaml_trainer import yaml_trainer

METHODS = [
    lt.RegMean(batches=3),
    lt.FisherWeighted(),
    lt.LearnedSoup(per="layer", batches=2),
    lt.Layerwise({"head": lt.RegMean(), "*": lt.Average()}),
]


class Logging(Toy):
    """Logs, and counts with a metric, in training_step, which returns its loss with other things."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = MulticlassAccuracy(3)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        logits = self.head(self.body(batch[0]))
        self.accuracy(logits, batch[1])
        self.log("accuracy", self.accuracy)
        loss = cross_entropy(logits, batch[1])
        self.log("loss", loss)
        return {"loss": loss, "logits": logits}


def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return cross_entropy(module.head(module.body(batch[0])), batch[1])


def as_by_hand(method: FusionMethod, models: list[dict[str, Tensor]], module: nn.Module) -> Any:
    """Return what the method makes of the models with the data that the run has at its end."""
    held_out = isinstance(method, lt.LearnedSoup)
    loader = Loader(2, seed=9, fixed=True) if held_out else Loader()
    loader.set_epoch(2)
    most = getattr(method, "batches", None)
    return lt.fuse(models, method, probe=lt.Probe(module, list(loader)[:most], loss))


@pytest.mark.parametrize("method", METHODS, ids=[type(method).__name__ for method in METHODS])
@pytest.mark.parametrize("kind", [Toy, Logging])
def test_it_is_the_method_with_the_runs_data(method: FusionMethod, kind: type[Toy], tmp_path: Path) -> None:
    spy = Epochs()
    module, _ = fit(tmp_path, spy, always(method=method, collect=lt.LastEpochs(2)), module=kind())
    fused = weights(module)
    wanted = as_by_hand(method, spy.ends[-2:], kind())
    for name, value in wanted.items():
        torch.testing.assert_close(fused[name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert "log" not in vars(module) and not module.head._forward_pre_hooks


def test_the_run_is_not_disturbed_and_the_loss_is_no_worse_than_that_of_the_average(tmp_path: Path) -> None:
    plain, fused = Epochs(), Epochs()
    fit(tmp_path / "a", plain, module=Logging())
    method = lt.LearnedSoup(per="layer")
    module, _ = fit(tmp_path / "b", fused, always(method=method), module=Logging())
    for one, other in zip(plain.steps, fused.steps, strict=True):
        assert_equal(one, other)
    learned, average = weights(module), lt.fuse(fused.ends)
    losses = []
    for state in (learned, average):
        module.load_state_dict(state)
        with torch.no_grad(), in_evaluation(module):
            losses.append(sum(float(loss(module, batch)) for batch in Loader(2, seed=9, fixed=True)))
    assert losses[0] <= losses[1]


class NoLoss(Toy):
    """Trains on some batches alone."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        return None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"module": TwoOptimizers()},
            "automatic_optimization must be True for LearnedSoup.*TwoOptimizers",
        ),
        (
            {"val": False},
            "there must be a validation loop for LearnedSoup.* to look at its data",
        ),
        ({"module": NoLoss()}, "training_step must return one loss to be looked at, got None"),
    ],
)
def test_a_run_that_cannot_show_its_loss_is_refused_before_the_first_batch(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    spy = Epochs()
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, spy, always(method=lt.LearnedSoup()), **settings)
    assert spy.steps == []


def test_shards_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SingleDeviceStrategy, "restore_checkpoint_after_setup", True)
    monkeypatch.setattr("lightning_tricks.fusion.fusion.check_parts", lambda trainer: None)
    with pytest.raises(ValueError, match=r"leave weights whole, as DDP does, for RegMean\(.*SingleDevice"):
        fit(tmp_path, always(method=lt.RegMean()))


def test_a_search_on_a_metric_is_no_worse_than_the_average(tmp_path: Path) -> None:
    spy = Epochs()
    method = lt.NelderMeadSoup("val_loss", "min", evaluations=12)
    module, runner = fit(tmp_path, spy, always(method=method, collect=lt.LastEpochs(2)))
    found = runner.validate(module, Loader(2, seed=9, fixed=True), verbose=False)[0]["val_loss"]
    module.load_state_dict(lt.fuse(spy.ends[-2:]))
    assert found <= runner.validate(module, Loader(2, seed=9, fixed=True), verbose=False)[0]["val_loss"]


def test_yaml_builds_them() -> None:
    for method in (*METHODS, lt.NelderMeadSoup("val_loss", "min")):
        text = lt.to_yaml(always(method=method))
        runner = yaml_trainer({"trainer": {**yaml.safe_load(text)["trainer"], "logger": False}}, Toy)
        (again,) = [each for each in runner.callbacks if isinstance(each, lt.WeightFusion)]
        assert again.method == method
