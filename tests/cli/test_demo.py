import logging
import re
import shlex
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib.image
import pytest
import torch

from lightning_tricks.cli import demo as demo_module
from lightning_tricks.cli import main
from lightning_tricks.cli.demo_record import Recorder
from lightning_tricks.cli.demo_settings import Demo
from tests import wandb_offline
from tests.cli.conftest import stranger

pytestmark = pytest.mark.xdist_group("demo")  # most look at one run

ARGV = ["demo", "--quick", "--epochs", "2", "--output"]
TECHNIQUES = ("GradientClip", "WarmupCosine", "EMAWeights", "ProgressiveUnfreeze", "WeightFusion")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A quick demo in a process of its own: what it printed, and its folder."""
    folder = tmp_path_factory.mktemp("demo")
    output = folder / "a new" / "folder"
    command = [sys.executable, "-m", "lightning_tricks.cli", *ARGV, str(output)]
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        command, cwd=root, env=stranger(folder), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended, output


def table(printed):
    """Return what was printed without times and paths, which differ from run to run."""
    return re.sub(r" *\d+\.\d ms", "", printed.partition("Figure:")[0].partition("A residual")[2])


def runs(output):
    """Return the two runs' files, the plain one first."""
    return sorted(output.rglob("*.wandb"), key=lambda path: len(wandb_offline.history(path)))


def leftovers(output):
    return sorted(path.name for path in output.rglob("*"))


def test_it_is_quiet(done):
    ended, _ = done
    assert ended.stderr == ""
    for noise in ("Tip", "warn", "GPU", "stopped", "wandb:", "stages open"):
        assert noise not in ended.stdout


def test_the_tables_name_all_weights_and_techniques(done):
    shown = done[0].stdout
    for word in ("plain", "raw", "averaged", "fused", *TECHNIQUES):
        assert re.search(rf"\b{word}\b", shown), word
    assert len(re.findall(r"\d+\.\d ms", shown)) == 4
    assert len(re.findall(r"\d+\.\d%  *\d\.\d{3}", shown)) == 7


def test_a_demo_too_small_to_compare_says_so(done):
    shown = " ".join(done[0].stdout.split())
    assert "Too small for a comparison: within 72 steps the techniques may cost more than they give." in shown
    assert Demo().caution(360) == Demo(epochs=11, seed=1).caution(360) == ""
    for small in ({"epochs": 9}, {"widths": (4, 8)}):
        assert "to compare" in Demo(**small).caution(360)


def test_the_same_seed_gives_the_same_table(done, tmp_path, capsys):
    assert main([*ARGV, str(tmp_path / "again")]) == 0
    assert table(capsys.readouterr().out) == table(done[0].stdout) != ""


@pytest.mark.slow
def test_another_seed_gives_another_table(done, tmp_path, capsys):
    main([*ARGV, str(tmp_path / "again"), "--seed", "1"])
    assert table(capsys.readouterr().out) != table(done[0].stdout)


def test_the_figure_is_where_it_is_said_to_be(done):
    ended, output = done
    path = re.search(r"^Figure: (.*)$", ended.stdout, re.MULTILINE)[1]
    assert path == str(output / "demo.png")
    height, width, _ = matplotlib.image.imread(path).shape
    assert (width, height) == (1425, 930)


def test_nothing_but_figure_and_runs_is_left(done):
    _, output = done
    assert sorted(path.name for path in output.iterdir()) == ["demo.png", "wandb"]
    assert len(list((output / "wandb").iterdir())) == 2


def test_the_upload_line_names_both_runs(done):
    ended, output = done
    words = shlex.split(ended.stdout.splitlines()[-1])
    assert words[:2] == ["wandb", "sync"]
    assert sorted(map(Path, words[2:])) == sorted((output / "wandb").iterdir())


def test_settings_of_both_runs_are_logged(done):
    plain, arm = map(wandb_offline.config, runs(done[1]))
    for found in (plain, arm):
        assert (found["seed"], found["epochs"], found["lr"]) == (0, 2, 0.05)
    assert plain["techniques"] == {"8 digits": [], "all ten": []}
    written = " ".join(arm["techniques"]["all ten"])
    for name in TECHNIQUES:
        assert f"{name}(" in written


def test_metrics_of_both_runs_are_logged(done):
    plain, arm = map(wandb_offline.history, runs(done[1]))
    for found in (plain, arm):
        for phase in ("phase1", "phase2"):
            assert len(found[f"{phase}-val_accuracy"]) == len(found[f"{phase}-live/val_loss"]) == 2
            assert len(found[f"{phase}-train_loss"]) > 2
    assert len(arm["phase1-gradient_clip/norm"]) > 2
    assert arm["phase2-progressive_unfreeze/stage"][-1] == 4
    assert not any("gradient_clip" in name for name in plain)


def test_final_scores_are_those_of_the_table(done):
    ended, output = done
    plain, arm = map(wandb_offline.summary, runs(output))
    rows = {"plain": plain, "raw": arm, "averaged": arm, "fused": arm}
    for word, found in rows.items():
        line = next(line for line in ended.stdout.splitlines() if re.search(rf"\b{word} ", line))
        if word == "raw":
            line = next(line for line in ended.stdout.splitlines() if "techniq" in line and "raw" in line)
        weights = "raw" if word == "plain" else word
        accuracy, loss = re.findall(r"(\d+\.\d)%  *(\d\.\d{3})", line)[-1]
        assert float(accuracy) == pytest.approx(100 * found[f"final/accuracy/{weights}"], abs=0.05)
        assert float(loss) == pytest.approx(found[f"final/loss/{weights}"], abs=0.0005)


def test_the_figure_of_both_runs_is_logged(done):
    _, output = done
    for path in runs(output):
        [logged] = wandb_offline.history(path)["figure/path"]
        assert (path.parent / "files" / logged).read_bytes() == (output / "demo.png").read_bytes()


def test_the_process_is_left_as_it_was():
    log = logging.getLogger("lightning.pytorch")
    before = torch.get_num_threads(), log.level, list(warnings.filters)
    with pytest.raises(RuntimeError), demo_module._quiet():
        assert (torch.get_num_threads(), log.level) == (1, logging.WARNING)
        raise RuntimeError
    assert (torch.get_num_threads(), log.level, list(warnings.filters)) == before


@pytest.fixture
def _interruptible():
    """Let Ctrl-C interrupt also where the tests run in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_ctrl_c_leaves_nothing(tmp_path, monkeypatch, capsys):
    handler = signal.getsignal(signal.SIGINT)

    def interrupt(self, *_):
        if self.record.steps == 20:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Recorder, "on_train_batch_start", interrupt)
    assert main([*ARGV, str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err.endswith("lightning-tricks: interrupted\n")
    assert leftovers(tmp_path / "out") == []
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_error_late_in_the_demo_leaves_nothing(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo_module, "draw", fail)
    assert main([*ARGV, str(tmp_path / "out")]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert leftovers(tmp_path / "out") == []


def test_a_folder_that_cannot_be_made_is_an_error_before_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo_module, "_train", None)
    (tmp_path / "file").touch()
    assert main([*ARGV, str(tmp_path / "file")]) == 2
    assert "File exists" in capsys.readouterr().err


@pytest.mark.parametrize(("module", "package"), [("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")])
def test_a_missing_package_is_named_before_training(module, package, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo_module, "_train", None)
    monkeypatch.setitem(sys.modules, module, None)
    assert main([*ARGV, str(tmp_path / "out")]) == 2
    expected = f'{package} must be installed: pip install "lightning_tricks[demo]"'
    assert expected in capsys.readouterr().err


@pytest.mark.slow
def test_another_optimizer_and_schedule_are_what_both_runs_have(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    options = ["--optimizer", "AdamW", "--schedule", "warmup('20%') >> linear(to=0.5)"]
    assert main([*ARGV, str(tmp_path), *options]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "AdamW with base rate 0.001" in printed
    # 32 steps of 8 digits: a warm-up of 6, so 1 / 7 at first; 1 - (31 - 6) / (32 - 6) / 2 at last.
    assert "LearningRate first rate 0.000143, highest 0.001, last 0.000519" in printed


def test_the_rate_is_the_optimizers_own_unless_given():
    assert [Demo(optimizer=name).rate for name in ("SGD", "Adam", "Adadelta")] == [0.05, 0.001, 1.0]
    assert Demo(optimizer="Adam", lr=0.1).rate == Demo(lr=0.1).rate == 0.1


@pytest.mark.parametrize("settings", [{"optimizer": "LBFGS"}, {"lr": 0.0}, {"schedule": "fast"}])
def test_settings_are_refused_before_anything_runs(settings):
    with pytest.raises(ValueError, match=f"^{next(iter(settings))} must"):
        Demo(**settings)
