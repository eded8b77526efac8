"""The curve between models, by itself and at the end of a run: values, barriers, plots."""

from __future__ import annotations

import json
import math
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from torch import Tensor

import lightning_tricks as lt
from lightning_tricks.fusion.curve import barrier
from lightning_tricks.lifecycle.batchnorm import reestimate_batchnorm
from lightning_tricks.lifecycle.evaluation import validate_again
from tests import wandb_offline
from tests.fusion.runs import Epochs, Normed, always, fit
from tests.fusion.test_preview import norm
from tests.toys import assert_equal, weights


def bump(model: dict[str, Tensor]) -> float:
    """Return a loss with two valleys, at -1 and 1, and a hill of 1 between them."""
    return float((model["w"] ** 2 - 1) ** 2)


def at(value: float) -> dict[str, Tensor]:
    return {"w": torch.tensor(value, dtype=torch.float64), "n": torch.tensor(int(10 * value))}


def test_a_hill_between_two_valleys_is_the_barrier() -> None:
    curve = lt.interpolation_curve([at(-1.0), at(1.0), at(0.0)], bump, points=5)
    assert curve.positions == (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
    assert curve.values == pytest.approx((0, 0.5625, 1, 0.5625, 0, 0.19140625, 0.5625, 0.87890625, 1))
    # From the second valley it rises to the top, at most 0.12890625 above a straight slope: at 0.25.
    assert curve.barriers == pytest.approx((1.0, 0.12890625)) and curve.barrier == curve.barriers[0]


def test_models_themselves_are_measured_at_their_places_integers_included() -> None:
    seen: list[tuple[float, int]] = []
    lt.interpolation_curve(
        [at(3.0), at(5.0)], lambda m: seen.append((float(m["w"]), int(m["n"]))) or 0.0, points=3
    )
    assert seen == [(3.0, 30), (4.0, 50), (5.0, 50)]


@pytest.mark.parametrize(
    ("values", "mode", "wanted"),
    [
        ([1.0, 2.0, 3.0], "min", 0.0),
        ([1.0, 0.0, 3.0], "min", 0.0),
        ([1.0, 2.5, 3.0], "min", 0.5),
        ([0.9, 0.1, 0.7], "max", 0.7),
        ([0.0, math.inf, 0.0], "min", math.inf),
    ],
)
def test_the_barrier_is_what_is_worse_than_the_straight_line(values: Any, mode: Any, wanted: float) -> None:
    assert barrier(values, mode=mode) == pytest.approx(wanted)


@pytest.mark.parametrize("values", [[0.0, math.nan, 0.0], [math.inf, 0.0, 0.0]])
def test_without_numbers_there_is_no_barrier(values: list[float]) -> None:
    assert math.isnan(barrier(values))


@pytest.mark.parametrize(
    ("models", "settings", "match"),
    [
        ([at(0.0)], {}, "models must be at least 2 to lie on a line"),
        ("a.ckpt", {}, "models must be at least 2 to lie on a line"),
        ([at(0.0), at(1.0)], {"points": 2}, "points must be at least 3, got 2"),
        ([at(0.0), at(1.0)], {"mode": "low"}, "mode must be one of 'min', 'max'"),
        ([at(0.0), {"w": torch.ones(2)}], {}, "n must be in every model"),
    ],
)
def test_what_makes_no_curve_is_refused(models: Any, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        lt.interpolation_curve(models, pytest.fail, **settings)


def test_an_evaluation_that_returns_no_number_is_named() -> None:
    with pytest.raises(TypeError, match="evaluate must return a number for a curve, got {'loss': 1.0}"):
        lt.interpolation_curve([at(0.0), at(1.0)], lambda model: {"loss": 1.0})  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("kept", [True, False])
def test_the_curve_of_a_run_goes_through_its_snapshots(kept: bool, tmp_path: Path) -> None:
    spy = Epochs()
    logger = CSVLogger(tmp_path)
    fusion = lt.WeightFusion(
        collect=lt.LastEpochs(3),
        monitor="norm",
        mode="min" if kept else "max",
        update_batchnorm=False,
        curve=4,
    )
    module, _ = fit(tmp_path, spy, fusion, module=Normed(), logger=logger)
    assert fusion.outcome()["kept"] is kept
    if not kept:
        assert_equal(weights(module), spy.ends[-1])
    models = spy.ends[-3:]
    names = [name for name, _ in module.named_parameters()]
    places = [
        {name: ((3 - thirds) * a[name] + thirds * b[name]) / 3 for name in names}
        for a, b in pairwise(models)
        for thirds in range(3)
    ]
    norms = [norm(model) for model in [*places, models[2]]]
    # A norm bends downwards between two points, and so rises above the line where more is better.
    straight = [((3 - i % 3) * norms[i - i % 3] + i % 3 * norms[i - i % 3 + 3]) / 3 for i in range(6)]
    below = [line - value for line, value in zip(straight, norms, strict=False)]
    rises = [0.0, 0.0] if kept else [max(below[:3]), max(below[3:])]
    assert fusion.outcome()["barrier"] == pytest.approx(max(rises), abs=1e-6)
    assert (tmp_path / "checkpoints" / "curve.png").read_bytes().startswith(b"\x89PNG")
    rows = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text()
    assert "weight_fusion/barrier" in rows.splitlines()[0]
    if kept:
        path = tmp_path / "checkpoints" / "fused.ckpt"
        about = torch.load(path, weights_only=True)["weight_fusion"]["curve"]
        assert about["positions"] == pytest.approx([0, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])
        assert about["values"] == pytest.approx(norms)
        assert about["barriers"] == pytest.approx(rises, abs=1e-6)


def test_without_matplotlib_it_says_why_there_is_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    fit(tmp_path, always(collect=lt.LastEpochs(2), monitor="val_loss", mode="min", curve=3))
    assert "no curve.png, since matplotlib must be installed: pip install" in capsys.readouterr().out
    assert not list((tmp_path / "checkpoints").glob("*curve*"))


def test_its_statistics_are_estimated_anew_and_the_fused_weights_are_not_touched(tmp_path: Path) -> None:
    class Ends(Epochs):
        """Measures each snapshot with statistics of its own, after the run."""

        def on_fit_end(self, trainer, pl_module) -> None:
            held = weights(pl_module)
            for model in self.ends[-2:]:
                pl_module.load_state_dict(model)
                reestimate_batchnorm(trainer, pl_module)
                losses.append(validate_again(trainer, pl_module)["val_loss"])
            pl_module.load_state_dict(held)

    losses: list[float] = []
    settings = {"collect": lt.LastEpochs(2), "monitor": "val_loss", "mode": "min", "update_batchnorm": True}
    fusion = always(**settings, curve=4)
    module, _ = fit(tmp_path / "a", Ends(), fusion)
    plain, _ = fit(tmp_path / "b", always(**settings))
    assert_equal(weights(module), weights(plain))
    about = torch.load(tmp_path / "a" / "checkpoints" / "fused.ckpt", weights_only=True)["weight_fusion"]
    assert [about["curve"]["values"][index] for index in (0, -1)] == pytest.approx(losses)


@pytest.mark.usefixtures("wandb_is_offline")
def test_weights_and_biases_gets_a_plot(tmp_path: Path) -> None:
    logger = WandbLogger(save_dir=tmp_path, offline=True, project="curve")
    fusion = always(collect=lt.LastEpochs(2), monitor="norm", mode="min", curve=3)
    fit(tmp_path, fusion, module=Normed(), logger=logger)
    logger.experiment.finish()
    wandb.teardown()  # waits for the process that writes
    (run,) = tmp_path.rglob("*.wandb")
    values = wandb_offline.history(run)
    assert values["weight_fusion/barrier"] == [pytest.approx(fusion.outcome()["barrier"])]
    (table,) = values["weight_fusion/curve_table/path"]
    held = json.loads((run.parent / "files" / table).read_text())
    about = torch.load(tmp_path / "checkpoints" / "fused.ckpt", weights_only=True)["weight_fusion"]["curve"]
    assert held["columns"] == ["snapshot", "norm"]
    rows = zip(about["positions"], about["values"], strict=True)
    assert held["data"] == [[place, pytest.approx(value)] for place, value in rows]
    shown = wandb_offline.config(run)["_wandb/visualize/weight_fusion/curve"]
    assert shown["panel_config"]["panelDefId"] == "wandb/line/v0"
    assert shown["panel_config"]["fieldSettings"] == {"x": "snapshot", "y": "norm", "stroke": None}


def test_one_snapshot_makes_no_curve_and_this_is_said(tmp_path: Path) -> None:
    fusion = always(collect=lt.LastEpochs(2), monitor="val_loss", mode="min", curve=3)
    with pytest.warns(UserWarning, match="no curve: it needs 2 snapshots, got 1"):
        fit(tmp_path, fusion, max_epochs=1)
    assert "barrier" not in fusion.outcome()
