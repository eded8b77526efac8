"""RunReport: what it tells of a run before and after, what loggers get, what it takes back."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from lightning_tricks import (
    DropoutSchedule,
    EMAWeights,
    GradientClip,
    GradientHealth,
    OptimizerMixin,
    RunReport,
    WarmupCosine,
)
from lightning_tricks.lifecycle.technique import Technique
from tests import wandb_offline
from tests.objectives.gan_toys import PointGAN, points
from tests.toys import Loader, StopAfter, StopError, Toy, trainer
from tests.wandb_server import WandbServer


class Mixed(OptimizerMixin, Toy):
    found_lr = 0.01


def cells(out: str, title: str) -> dict[str, list[str]]:
    """Return the rows of a printed table by their first cell, folded lines joined."""
    found: dict[str, list[str]] = {}
    lines = iter(out.splitlines())
    assert any(line.startswith(f"RunReport: {title}") for line in lines), out
    name = ""
    for line in lines:
        if not line.startswith("|"):
            break
        row = [cell.strip() for cell in line.strip("|").split("|")]
        name = row[0] or name
        before = found.setdefault(name, [""] * len(row))
        found[name] = [f"{a} {b}".strip() for a, b in zip(before, row, strict=True)]
    return found


def techniques() -> list[Callback]:
    return [
        WarmupCosine(warmup=2),
        GradientClip(max_norm=0.1),
        EMAWeights(decay=0.5, params="head", evaluate=False),
        DropoutSchedule(schedule=0.1),
        GradientHealth(every=1),
    ]


def test_it_tells_what_is_active_and_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    trainer(*techniques(), RunReport(), max_epochs=1).fit(Mixed(), Loader(), Loader())
    out = capsys.readouterr().out
    start = cells(out, "what is active")
    everything = "6 tensors, 83 entries"  # 4x8 + 8, 8 + 8 of BatchNorm, 8x3 + 3
    assert start["WarmupCosine"] == ["WarmupCosine", "warmup=2", "lr", "all"]
    assert start["GradientClip"] == ["GradientClip", "max_norm=0.1", "clipping", everything]
    assert start["EMAWeights"][2:] == ["", "2 tensors, 27 entries"]
    assert start["DropoutSchedule"][2:] == ["dropout", "1 layer"]
    assert start["GradientHealth"][2:] == ["", everything]
    assert "found_lr=0.01" in start["OptimizerMixin"][1]
    assert "RunReport" not in start
    orders = cells(out, "in which order it acts")
    assert orders["before a step"][1] == "EMAWeights, GradientHealth"
    assert orders["on gradients of a step"][1] == "GradientClip"
    end = cells(out, "what was done in the whole run, 5 batches")
    assert end["GradientClip"][1] == "steps 5, clipped 5, skipped 0"
    assert end["EMAWeights"][1].startswith("updates 5, decay ")


def test_a_mixin_that_brings_a_technique_along_is_one_row(capsys: pytest.CaptureFixture[str]) -> None:
    trainer(RunReport(), max_epochs=1).fit(PointGAN(n_critic=2), points())
    start = capsys.readouterr().out.partition("in which order")[0]
    assert start.count("GANMixin") == 1
    assert "n_critic=2" in start and "gan_seed" not in start  # which is 0, as it is by default


def test_loggers_get_settings_and_outcomes(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    trainer(*techniques(), RunReport(), logger=logger, max_epochs=1).fit(Mixed(), Loader())
    hparams = yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text())
    clip = hparams["run_report"]["active"]["GradientClip"]
    assert clip == {"owns": "clipping", "touches": "6 tensors, 83 entries"}
    assert hparams["run_report"]["order"]["on gradients of a step"].endswith("GradientClip")
    held = hparams["techniques"]
    assert held["GradientClip"]["max_norm"] == 0.1
    assert held["EMAWeights"]["params"] == "head"
    assert held["OptimizerMixin"]["found_lr"] == 0.01
    last = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    row = dict(zip(last[0].split(","), last[-1].split(","), strict=True))
    assert float(row["run_report/GradientClip/clipped"]) == 5


@pytest.mark.usefixtures("wandb_is_offline")
def test_weights_and_biases_gets_them_too(tmp_path: Path) -> None:
    logger = WandbLogger(save_dir=tmp_path, offline=True, project="report")
    trainer(*techniques(), RunReport(), logger=logger, max_epochs=1).fit(Toy(), Loader())
    logger.experiment.finish()
    wandb.teardown()  # waits for the process that writes
    [run] = tmp_path.rglob("*.wandb")
    assert wandb_offline.config(run)["techniques"]["GradientClip"]["max_norm"] == 0.1
    values = wandb_offline.history(run)
    assert values["run_report/GradientClip/clipped"] == [5]
    start, order, end = (
        json.loads((run.parent / "files" / values[f"run_report/{name}/path"][0]).read_text())
        for name in ("techniques", "order", "outcome")
    )
    assert ["on updated weights", "EMAWeights"] in order["data"]
    assert start["data"][1] == ["GradientClip", "max_norm=0.1", "clipping", "6 tensors, 83 entries"]
    assert end["data"][1][:2] == ["GradientClip", "steps 5, clipped 5, skipped 0"]


def test_they_arrive_online(tmp_path: Path, wandb_online: WandbServer) -> None:
    settings = wandb.Settings(show_info=False, console="off")
    run = wandb.init(project="report", name="online", dir=tmp_path, settings=settings)
    logger = WandbLogger(experiment=run, save_dir=tmp_path)
    trainer(*techniques(), RunReport(), logger=logger, max_epochs=1).fit(Toy(), Loader(), Loader())
    run.finish()
    found = wandb_online.named()["online"]
    assert found.config["techniques"]["EMAWeights"]["decay"] == 0.5
    assert "on updated weights" in found.config["run_report"]["order"]
    assert found.history("run_report/GradientClip/clipped") == [5]
    assert found.summary["run_report/GradientClip/clipped"] == 5
    start, end = (found.table(f"run_report/{name}") for name in ("techniques", "outcome"))
    assert start[1] == ["GradientClip", "max_norm=0.1", "clipping", "6 tensors, 83 entries"]
    assert end[1][:2] == ["GradientClip", "steps 5, clipped 5, skipped 0"]


def test_no_run_dies_of_a_server_that_takes_no_table(
    tmp_path: Path, wandb_online: WandbServer, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = wandb.Settings(show_info=False, console="off", finish_timeout=1)
    run = wandb.init(project="report", dir=tmp_path, settings=settings)
    wandb_online.broken = 401
    logger = WandbLogger(experiment=run, save_dir=tmp_path)
    with pytest.warns(UserWarning, match="W.* did not take run_report/(techniques|order|outcome): .*refused"):
        trainer(GradientClip(), RunReport(), logger=logger, max_epochs=1).fit(Toy(), Loader())
    assert "what was done in the whole run" in capsys.readouterr().out
    run.finish()


class Sleeps(Technique):
    """Takes its time in hooks of Lightning's, in a phase of its own, and in validation."""

    def claims(self) -> list[Any]:
        return []

    def on_train_batch_end(self, *_: Any) -> None:
        time.sleep(0.004)

    def after_step(self, *_: Any) -> None:
        time.sleep(0.002)

    def on_validation_end(self, *_: Any) -> None:
        time.sleep(0.05)


def test_costs_are_those_of_its_own_hooks(capsys: pytest.CaptureFixture[str]) -> None:
    report = RunReport()
    trainer(WarmupCosine(), Sleeps(), report, max_epochs=1).fit(Toy(), Loader(), Loader())
    assert 6.0 <= report.costs["Sleeps"] < 40.0  # not those of validation
    assert report.costs["WarmupCosine"] < report.costs["Sleeps"]
    end = cells(capsys.readouterr().out, "what was done in the whole run, 5 batches")
    assert float(end["Sleeps"][4]) >= 0.05


def own_hooks(callback: Callback) -> list[str]:
    return [name for name in vars(callback) if callable(vars(callback)[name]) and name in dir(type(callback))]


def test_hooks_are_given_back_also_when_a_run_breaks_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, report = GradientClip(max_norm=0.1), RunReport()
    seen = []

    class Looks(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            seen.append(own_hooks(clip))

    stop = StopAfter(3, tmp_path / "a.ckpt")
    with pytest.raises(StopError):
        trainer(clip, Looks(), stop, report).fit(Toy(), Loader())
    assert "on_before_optimizer_step" in seen[0] and not own_hooks(clip)
    end = cells(capsys.readouterr().out, "what was done until the run broke off, 3 batches")
    assert end["GradientClip"][1] == "steps 3, clipped 3, skipped 0"
    runner = trainer(clip, report, max_epochs=1)
    runner.fit(Toy(), Loader())
    assert not own_hooks(clip)


def test_a_resumed_run_says_since_when_it_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.ckpt"
    with pytest.raises(StopError):
        trainer(GradientClip(max_norm=0.1), StopAfter(3, path), max_epochs=1).fit(Toy(), Loader())
    again = trainer(GradientClip(max_norm=0.1), RunReport(), max_epochs=1)
    again.fit(Toy(), Loader(), ckpt_path=path)
    title = "what was done in the whole run; since step 3, 2 batches of "
    assert cells(capsys.readouterr().out, title)["GradientClip"][1] == "steps 5, clipped 5, skipped 0"


def test_alone_it_says_so_in_place_of_tables(capsys: pytest.CaptureFixture[str]) -> None:
    trainer(RunReport(), max_epochs=1).fit(Toy(), Loader())
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("RunReport")]
    assert said[0] == "RunReport: what is active: no other technique"
    assert said[1].startswith("RunReport: what was done in the whole run, 5 batches of ")
    assert said[1].endswith(" ms: no other technique")
    assert "|" not in "".join(said)


def test_beside_a_mixin_alone_nothing_is_said_of_an_order(capsys: pytest.CaptureFixture[str]) -> None:
    trainer(RunReport(), max_epochs=1).fit(Mixed(), Loader())
    out = capsys.readouterr().out
    assert "OptimizerMixin" in cells(out, "what is active")
    assert "in which order" not in out


def test_an_error_of_a_technique_still_names_it() -> None:
    class Fails(Sleeps):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError) as caught:
        trainer(Fails(), RunReport()).fit(Toy(), Loader())
    assert caught.value.__notes__ == ["in Fails: Fails()"]


def test_checkpoints_hold_no_measured_hooks(tmp_path: Path) -> None:
    keeps = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=2)
    trainer(*techniques(), RunReport(), keeps, max_epochs=1).fit(Toy(), Loader())
    assert list(tmp_path.glob("*.ckpt"))


def test_a_trial_run_is_left_in_peace(capsys: pytest.CaptureFixture[str]) -> None:
    trainer(GradientClip(max_norm=0.1), RunReport(), fast_dev_run=2).fit(Toy(), Loader())
    assert "RunReport" not in capsys.readouterr().out
