"""``lightning-tricks ablate`` in a project of a user's own, in a folder that holds nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_tricks import Ablation
from lightning_tricks.cli import main
from lightning_tricks.study.queue import attempts
from lightning_tricks.study.storage import open_storage
from tests.cli.conftest import stranger
from tests.study.small import project

pytestmark = pytest.mark.filterwarnings("ignore:.*smaller than the logging interval")


@pytest.fixture
def folder(tmp_path, monkeypatch, request):
    """A folder with a project, as the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    project(tmp_path, f"project_{abs(hash(request.node.name))}")
    return tmp_path


def trials(path):
    storage = open_storage(path)
    (study,) = storage.get_all_studies()
    return attempts(storage.get_all_trials(study._study_id))


def test_it_measures_a_project_in_one_command(folder, capfd):
    assert main(["ablate", "config.yaml", "--seeds", "2"]) == 0
    shown = capfd.readouterr()
    assert shown.err == ""
    for word in (
        "all together",
        "GradientClip",
        "WarmupCosine",
        "the mean over 2 seeds",
        "written: ablation/",
    ):
        assert word in shown.out
    assert "said by the module" not in shown.out
    kept = sorted(path.name for path in (folder / "ablation").iterdir())
    assert kept == ["ablation.json", "ablation.md", "ablation.png", "study.journal"]
    assert {path.name for path in folder.iterdir() if path.suffix != ".py"} - {"__pycache__"} == {
        "ablation",
        "config.yaml",
    }
    assert (
        (folder / "ablation" / "ablation.md").read_text().startswith("# What each technique brings: val_loss")
    )
    found = json.loads((folder / "ablation" / "ablation.json").read_text())
    assert [(each["arm"], each["seed"]) for each in found["trials"]] == [
        (arm, seed)
        for seed in (0, 1)
        for arm in ("none", "all", "without GradientClip", "without WarmupCosine")
    ]
    assert main(["ablate", "config.yaml", "--seeds", "2", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == found  # nothing was trained again


def test_a_dry_run_lists_the_trials_and_writes_nothing(folder, capsys):
    assert main(["ablate", "config.yaml", "--dry-run", "--storage", "postgresql://me:secret@host/db"]) == 0
    shown = capsys.readouterr().out
    assert "without WarmupCosine: GradientClip" in shown
    assert "4 arms, 20 trials in postgresql://me:***@host/db; nothing has been run" in shown
    assert "whether it trains and logs val_loss" in shown
    assert main(["ablate", "config.yaml", "--dry-run", "--json", "--techniques", "[WarmupCosine]"]) == 0
    found = json.loads(capsys.readouterr().out)["trials"]
    assert [each["seed"] for each in found] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert [len(each["names"]) for each in found] == [0, 1, 1, 0, 0, 1, 1, 0, 0, 1]
    assert not (folder / "ablation").exists()


def test_what_only_watches_is_no_arm(folder, capsys):
    entries = "{class_path: lightning_tricks.RunReport}, {class_path: lightning_tricks.EMAWeights}"
    (folder / "more.yaml").write_text(f"trainer: {{callbacks: [{entries}]}}")
    assert main(["ablate", "config.yaml", "more.yaml", "--dry-run", "--json", "--seeds", "1"]) == 0
    found = json.loads(capsys.readouterr().out)["trials"]
    assert [each["names"] for each in found] == [[], ["EMAWeights"]]
    (folder / "more.yaml").write_text(f"trainer: {{callbacks: [{entries.partition(',')[0]}]}}")
    assert main(["ablate", "config.yaml", "more.yaml", "--dry-run"]) == 2
    assert "techniques that change a run, got RunReport" in capsys.readouterr().err


@pytest.mark.timeout(120)
@pytest.mark.slow
def test_killed_it_goes_on_and_runs_again_what_was_running(folder, capsys):
    command = [sys.executable, "-m", "lightning_tricks.cli", "ablate", "config.yaml", "--seeds", "1"]
    environment = {**stranger(folder), "PYTHONPATH": str(Path(__file__).parents[2])}
    killed = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    journal = folder / "ablation" / "study.journal"
    while not journal.exists() or journal.read_text().count('"state":1') < 1:  # done
        assert killed.poll() is None
        time.sleep(0.005)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    before = trials(journal)
    done = {key for key, chain in before.items() if chain[-1].state.name == "COMPLETE"}
    running = {key for key, chain in before.items() if chain[-1].state.name == "RUNNING"}
    assert len(done) >= 1
    assert len(running) <= 1
    assert main(["ablate", "config.yaml", "--seeds", "1"]) == 0
    after = trials(journal)
    assert {chain[-1].state.name for chain in after.values()} == {"COMPLETE"}
    assert {key for key, chain in after.items() if len(chain) > 1} == running
    for key in done:
        assert after[key][-1].datetime_start == before[key][-1].datetime_start


@pytest.mark.timeout(120)
@pytest.mark.slow
def test_workers_share_the_trials(folder, monkeypatch, capsys):
    journal, run = folder / "ablation" / "study.journal", Ablation.run

    def late(self, *rest):  # this process would have done all before the other has loaded what it needs
        while not journal.exists() or "process" not in journal.read_text():
            time.sleep(0.01)
        return run(self, *rest)

    monkeypatch.setattr(Ablation, "run", late)
    assert main(["ablate", "config.yaml", "--seeds", "1", "--workers", "2", "--json"]) == 0
    found = trials(journal)
    assert {chain[-1].state.name for chain in found.values()} == {"COMPLETE"}
    assert {len(chain) for chain in found.values()} == {1}
    assert {chain[-1].user_attrs["process"]["pid"] for chain in found.values()} - {os.getpid()}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["no.yaml"], "no.yaml"),
        ([], "config must be given"),
        (["config.yaml", "--seeds", "0"], "seeds must be at least 1, got 0"),
        (["config.yaml", "--mode", "less"], "mode must be one of 'min', 'max', got 'less'"),
        (["config.yaml", "--workers", "0"], "workers must be at least 1, got 0"),
        (["config.yaml", "--techniques", "[GradientClp]"], "did you mean 'GradientClip'?"),
        (["config.yaml", "--metric", "vall_loss"], "did you mean 'val_loss'?"),
        (["config.yaml", "--sedes", "3"], "did you mean --seeds?"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(argv, message, folder, capfd):
    assert main(["ablate", *argv]) == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("lightning-tricks: error: ")
    assert shown.err.count("\n") == 1
    assert message in shown.err
    assert not (folder / "ablation").exists()


def test_a_changed_configuration_is_refused(folder, capsys):
    argv = ["ablate", "config.yaml", "--seeds", "1", "--techniques", "[GradientClip]"]
    assert main(argv) == 0
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("max_epochs: 2", "max_epochs: 3"))
    assert main(argv) == 2
    assert "trainer.max_epochs must be 2, as the study 'config' was begun, got 3" in capsys.readouterr().err


def test_a_missing_package_is_named(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["ablate", "config.yaml"]) == 2
    assert 'optuna must be installed: pip install "lightning_tricks[study]"' in capsys.readouterr().err
