"""``--model`` and ``--data``: projects whose program gives LightningCLI its classes."""

from __future__ import annotations

import json
import re
import sys
import warnings
from importlib import import_module

import pytest
import yaml
from lightning.pytorch.cli import LightningCLI

from lightning_tricks.cli import main
from lightning_tricks.study.project import Project
from lightning_tricks.study.trial import run_trial
from tests.study.small import project

pytestmark = pytest.mark.filterwarnings("ignore:.*smaller than the logging interval")
NAME = "program_with_classes"
CLASSES = ["--model", f"{NAME}:Net", "--data", f"{NAME}:Data"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with such a project as plain.yaml, and with config.yaml the same by class_path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    config = yaml.safe_load(project(tmp_path, NAME).read_text())
    config |= {"model": config["model"]["init_args"]}
    del config["data"]
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (tmp_path / "runs.py").write_text("class Net: ...\nraise SystemExit(2)\n")
    return tmp_path


def test_a_trial_is_that_of_the_classes_in_the_configuration(folder):
    by_path = Project.read(["config.yaml"])
    own = import_module(NAME)
    given = Project.read(["plain.yaml"], model=own.Net, data=own.Data)
    values = {
        run_trial(each.build, [each.techniques["GradientClip"]()], seed=0, metric="val_loss").value
        for each in (by_path, given)
    }
    assert len(values) == 1
    assert given.settings["model.width"] == 3
    assert given.settings["model class"] == f"{NAME}.Net"


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_commands_take_them(folder, capfd, workers):
    tables = []
    for config in (["config.yaml"], ["plain.yaml", *CLASSES]):
        assert main(["groups", *config]) == 0
        tables.append(capfd.readouterr().out)
    assert tables[0] == tables[1]
    assert main(["ablate", "plain.yaml", *CLASSES, "--seeds", "2", "--workers", workers]) == 0
    assert "all together" in capfd.readouterr().out


def test_lightning_runs_what_a_search_found_best(folder, capfd, monkeypatch):
    (folder / "space.yaml").write_text(
        "model.width: [2, 3, 8]\noptimizer.init_args.lr: {low: 0.01, high: 0.1}\n"
    )
    assert main(["search", "plain.yaml", *CLASSES, "--space", "space.yaml", "--trials", "2"]) == 0
    assert capfd.readouterr().err == ""
    found = json.loads((folder / "search" / "search.json").read_text())
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", "--config", "search/best.yaml"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's hints to the user
        own = import_module(NAME)
        run = LightningCLI(own.Net, own.Data)
        (again,) = run.trainer.validate(run.model, run.datamodule, verbose=False)
    assert again["val_loss"] == found["best"]["value"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "model must have a class_path in the configuration .*--model program:Net"),
        (["--model", "Net"], "--model must be written as MODULE:CLASS, got 'Net'"),
        (["--model", "nowhere:Net"], "--model must name a class that can be imported, got 'nowhere:Net': No"),
        (["--model", f"{NAME}:Nte"], f"--model must name a class .* module '{NAME}' has no attribute 'Nte'"),
        (["--model", "runs:Net"], "to import runs runs a command: guard that by if __name__"),
        (["--model", f"{NAME}:Data"], "model must be a class of LightningModule, got <class"),
        ([*CLASSES[:2], "--data", f"{NAME}:Net"], "data must be a class of LightningDataModule, got"),
    ],
)
def test_what_is_no_such_class_is_refused(folder, capsys, words, message):
    for command in ("groups", "ablate", "search"):
        assert main([command, "plain.yaml", *words]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert re.search(message, told), told
