"""BatchNorm statistics of fused weights: as they are fused and estimated anew, and the better are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import lightning_tricks as lt
from lightning_tricks.lifecycle.batchnorm import reestimate_batchnorm
from lightning_tricks.lifecycle.evaluation import validate_again
from tests.fusion.runs import Epochs, Normed, always, fit, mean
from tests.toys import Toy, assert_equal, weights


class Spread(Toy):
    """Validation logs how large the running variances are."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.log("spread", self.body[1].running_var.sum())


@pytest.mark.parametrize("mode", ["min", "max"])
def test_both_are_measured_and_the_better_stay(mode: str, tmp_path: Path, capsys: Any) -> None:
    class Both(Epochs):
        def on_fit_end(self, trainer, pl_module) -> None:
            held = weights(pl_module)
            pl_module.load_state_dict(mean(self.ends))
            found.append((weights(pl_module), validate_again(trainer, pl_module)["spread"]))
            reestimate_batchnorm(trainer, pl_module)
            found.append((weights(pl_module), validate_again(trainer, pl_module)["spread"]))
            pl_module.load_state_dict(held)

    found: list[Any] = []
    fusion = lt.WeightFusion(collect=lt.LastEpochs(3), monitor="spread", mode=mode, keep="always")
    module, _ = fit(tmp_path, Both(), fusion, module=Spread())
    (as_fused, before), (anew, after) = found
    assert before != after
    reestimated = (after < before) == (mode == "min")
    wanted = {
        "metric_as_fused": pytest.approx(before),
        "metric_reestimated": pytest.approx(after),
        "reestimated": reestimated,
        "metric_fused": pytest.approx(after if reestimated else before),
    }
    assert {name: fusion.outcome()[name] for name in wanted} == wanted
    assert_equal(weights(module), anew if reestimated else as_fused)
    about = torch.load(tmp_path / "checkpoints" / "fused.ckpt", weights_only=True)["weight_fusion"]
    assert {name: about[name] for name in wanted} == wanted
    assert f"reestimated {reestimated}" in capsys.readouterr().out


def test_where_they_are_equally_good_they_are_estimated_anew(tmp_path: Path) -> None:
    fusion = lt.WeightFusion(collect=lt.LastEpochs(2), monitor="norm", mode="min", keep="always")
    forced = always(collect=lt.LastEpochs(2), update_batchnorm=True)
    ours, _ = fit(tmp_path / "a", fusion, module=Normed())
    theirs, _ = fit(tmp_path / "b", forced, module=Normed())
    assert fusion.outcome()["reestimated"] is True
    assert_equal(weights(ours), weights(theirs))


@pytest.mark.parametrize("setting", [True, False])
def test_who_forces_one_measures_one(setting: bool, tmp_path: Path) -> None:
    fusion = lt.WeightFusion(
        collect=lt.LastEpochs(2), monitor="spread", mode="min", keep="always", update_batchnorm=setting
    )
    fit(tmp_path, fusion, module=Spread())
    assert set(fusion.outcome()) == {"snapshots", "metric_before", "metric_fused", "kept"}


def test_without_batchnorm_there_is_one_set(tmp_path: Path) -> None:
    class Frozen(Normed):
        def on_train_epoch_start(self) -> None:
            self.body[1].eval()

    fusion = lt.WeightFusion(collect=lt.LastEpochs(2), monitor="norm", mode="min")
    fit(tmp_path, fusion, module=Frozen())
    assert "reestimated" not in fusion.outcome()


def test_without_a_metric_of_its_own_that_of_the_method_decides(tmp_path: Path) -> None:
    fusion = lt.WeightFusion(method=lt.GreedySoup("spread", "max"), collect=lt.LastEpochs(2), keep="always")
    fit(tmp_path, fusion, module=Spread())
    found = fusion.outcome()
    assert found["reestimated"] is (found["metric_reestimated"] >= found["metric_as_fused"])
