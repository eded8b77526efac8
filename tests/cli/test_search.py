"""``lightning-tricks search`` in a project of a user's own, in a folder that holds nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.cli import LightningCLI

from lightning_tricks import Search
from lightning_tricks.cli import main
from lightning_tricks.study.queue import attempts
from lightning_tricks.study.space import Space
from lightning_tricks.study.storage import open_storage
from tests.cli.conftest import stranger
from tests.study.small import project

pytestmark = pytest.mark.filterwarnings("ignore:.*smaller than the logging interval")
SPACE = """
model.init_args.width: [2, 3, 8]
optimizer.init_args.lr: {low: 1e-3, high: 1.0, log: true}
techniques:
  GradientClip: {optional: true, max_norm: {low: 0.1, high: 10, log: true}}
  EMAWeights: {optional: true, decay: [0.5, 0.9]}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch, request):
    """A folder with a project and a space, as the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    project(tmp_path, f"searched_{abs(hash(request.node.name))}")
    (tmp_path / "space.yaml").write_text(SPACE)
    return tmp_path


def trials(path):
    storage = open_storage(path)
    (study,) = storage.get_all_studies()
    return attempts(storage.get_all_trials(study._study_id))


def test_it_searches_in_one_command_and_lightning_runs_the_best(folder, capfd, monkeypatch):
    argv = ["search", "config.yaml", "--space", "space.yaml", "--trials", "8"]
    assert main(argv) == 0
    shown = capfd.readouterr()
    assert shown.err == ""
    for word in ("the default", "importance", "Best: trial", "8 of 8 trials have ended", "search/best.yaml"):
        assert word in shown.out
    assert "said by the module" not in shown.out
    kept = sorted(path.name for path in (folder / "search").iterdir())
    assert kept == ["best.yaml", "search.json", "search.md", "search.png", "study.journal"]
    assert not (folder / "kept").exists()  # where the configuration keeps its checkpoints
    assert main([*argv, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found == json.loads((folder / "search" / "search.json").read_text())  # nothing was trained again
    assert found["gain"] > 0

    monkeypatch.setattr(sys, "argv", ["train.py", "fit", "--config", "search/best.yaml"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's hints to the user
        run = LightningCLI()
        assert found["best"]["settings"]["model.init_args.width"] == run.model.hparams.width
        (again,) = run.trainer.validate(run.model, run.datamodule, verbose=False)
    assert again["val_loss"] == found["best"]["value"]


def test_a_dry_run_prints_a_space_to_edit_and_writes_nothing(folder, capsys):
    assert main(["search", "config.yaml", "--dry-run", "--storage", "postgresql://me:secret@host/db"]) == 0
    shown = capsys.readouterr().out
    assert "# 20 trials of infinitely many possible, kept in postgresql://me:***@host/db" in shown
    (folder / "own.yaml").write_text(shown)
    space = Space.read("own.yaml")
    assert list(space.techniques) == ["GradientClip", "WarmupCosine"]
    assert space.techniques["GradientClip"].settings["max_norm"].plain()["high"] == 10.0
    assert main(["search", "config.yaml", "--dry-run", "--json", "--space", "own.yaml"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["space"] == space.plain()
    assert found["default"]["GradientClip.max_norm"] == 0.5
    assert not (folder / "search").exists()


def test_when_time_is_up_it_says_so_and_the_same_command_goes_on(folder, capfd):
    argv = ["search", "config.yaml", "--trials", "1", "--timeout"]
    assert main([*argv, "0.001"]) == 0  # over before the first trial
    shown = capfd.readouterr().out
    assert "0 of 1 trials have ended" in shown
    assert "After 0.001 s no further trial was begun; the same command goes on." in shown
    assert main([*argv, "1000"]) == 0
    shown = capfd.readouterr()
    assert "1 of 1 trials have ended" in shown.out
    assert "no further trial" not in shown.out
    assert shown.err == ""
    assert main([*argv, "1000"]) == 0
    assert capfd.readouterr().err == "1 of 1 trials had ended before\n"


@pytest.mark.slow  # as that of an ablation, which is not
@pytest.mark.timeout(120)
def test_killed_it_goes_on_and_runs_again_what_was_running(folder, capsys):
    options = ["config.yaml", "--space", "space.yaml", "--trials", "6", "--json"]
    command = [sys.executable, "-m", "lightning_tricks.cli", "search", *options]
    environment = {**stranger(folder), "PYTHONPATH": str(Path(__file__).parents[2])}
    killed = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    journal = folder / "search" / "study.journal"
    while not journal.exists() or journal.read_text().count('"state":1') < 2:  # done
        assert killed.poll() is None
        time.sleep(0.005)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    before = trials(journal)
    running = {key for key, chain in before.items() if chain[-1].state.name == "RUNNING"}
    assert main(["search", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    after = trials(journal)
    assert len(after) == 6  # the one that was killed does not count
    assert {key for key, chain in after.items() if len(chain) > 1} == running
    for key, chain in before.items():
        if chain[-1].state.name == "COMPLETE":
            assert after[key][-1].datetime_start == chain[-1].datetime_start
    assert main(["search", *options, "--output", "whole"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert [each["settings"] for each in found["trials"]] == [each["settings"] for each in whole["trials"]]
    assert found["best"]["value"] == whole["best"]["value"]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_two_workers_never_run_the_same_trial(folder, monkeypatch, capsys):
    journal, run = folder / "search" / "study.journal", Search.run

    def late(self, *rest):  # this process would have done all before the other has loaded what it needs
        while not journal.exists() or "process" not in journal.read_text():
            time.sleep(0.01)
        return run(self, *rest)

    monkeypatch.setattr(Search, "run", late)
    (folder / "space.yaml").write_text("model.init_args.width: [2, 3, 4, 5]\ntrainer.max_epochs: [1, 2]")
    options = ["--space", "space.yaml", "--sampler", "random", "--trials", "8", "--pruner", "none"]
    assert main(["search", "config.yaml", *options, "--workers", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    points = [tuple(each["settings"].items()) for each in found["trials"]]
    assert len(points) == len(set(points)) == 8  # of eight there are
    chains = trials(journal)
    assert {chain[-1].state.name for chain in chains.values()} == {"COMPLETE"}
    for chain in chains.values():
        assert all("released" in trial.user_attrs for trial in chain[:-1])
    workers = [chain[-1].user_attrs["process"]["pid"] for chain in chains.values()]
    assert set(workers) - {os.getpid()}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["no.yaml"], "no.yaml"),
        ([], "config must be given"),
        (["config.yaml", "--space", "no.yaml"], "no.yaml"),
        (["config.yaml", "--trials", "0"], "trials must be at least 1, got 0"),
        (["config.yaml", "--mode", "less"], "mode must be one of 'min', 'max', got 'less'"),
        (["config.yaml", "--workers", "0"], "workers must be at least 1, got 0"),
        (["config.yaml", "--sampler", "tep"], "did you mean 'tpe'?"),
        (["config.yaml", "--metric", "vall_loss"], "did you mean 'val_loss'?"),
        (["config.yaml", "--sampler", "grid"], "GradientClip.max_norm must be a list of choices"),
        (["config.yaml", "--trails", "3"], "did you mean --trials?"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(argv, message, folder, capfd):
    assert main(["search", *argv]) == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("lightning-tricks: error: ")
    assert shown.err.count("\n") == 1
    assert message in shown.err
    assert not (folder / "search").exists()


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("model.init_args.widht: [2, 3]", "did you mean 'model.init_args.width'?"),
        ("trainer.callbacks: [1, 2]", "trainer.callbacks must be left out of the space"),
        ("optimizer.init_args.lr: [0.1, 0.2]", "optimizer.init_args.lr must be able to stay 0.01"),
        ("techniques: {GradientClip: {max_nrom: [1.0, 2.0]}}", "max_nrom"),
        ("- a list", "space must be a mapping"),
        ("a: b: c", "space.yaml must be a space in YAML"),
    ],
)
def test_a_mistake_in_the_space_is_told(space, message, folder, capsys):
    (folder / "space.yaml").write_text(space)
    assert main(["search", "config.yaml", "--space", "space.yaml"]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "search").exists()


def test_another_space_is_refused(folder, capsys):
    (folder / "space.yaml").write_text(yaml.safe_dump({"model.init_args.width": [2, 3]}))
    argv = ["search", "config.yaml", "--space", "space.yaml", "--sampler", "grid"]
    assert main(argv) == 0
    (folder / "space.yaml").write_text(yaml.safe_dump({"model.init_args.width": [2, 3, 4]}))
    assert main(argv) == 2
    assert "space.model.init_args.width must be '[2, 3]', as the study 'config'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "asked", "used"),
    [
        ("seed_everything: 5", [], 5),
        ("seed_everything: 5", ["--seed", "3"], 3),
        ("seed_everything: true", [], 0),
        ("", [], 0),
    ],
)
def test_the_seed_is_the_projects_own(folder, given, asked, used):
    config = Path("config.yaml")
    config.write_text(config.read_text().replace("seed_everything: 7", given))
    argv = ["search", "config.yaml", "--space", "space.yaml", "--trials", "1", *asked]
    assert main(argv) == 0
    assert yaml.safe_load(Path("search/best.yaml").read_text())["seed_everything"] == used
