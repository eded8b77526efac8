"""A LightningCLI project's configuration as what a study trains."""

from __future__ import annotations

import pytest
import torch

from lightning_tricks import GradientClip, WarmupCosine
from lightning_tricks.study.project import Project
from lightning_tricks.study.trial import run_trial
from tests.study.small import project


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path), *__import__("sys").path])
    return project(tmp_path, "project_of_a_user")


def test_techniques_are_taken_out_and_the_rest_is_kept(config):
    found = Project.read([config])
    clip, warmup = (make() for make in found.techniques.values())
    assert list(found.techniques) == ["GradientClip", "WarmupCosine"]
    assert isinstance(clip, GradientClip)
    assert clip.max_norm == 0.5
    assert isinstance(warmup, WarmupCosine)
    setup = found.build(3)
    kinds = [type(each).__name__ for each in setup.trainer["callbacks"]]
    assert kinds == ["LearningRateMonitor", "TQDMProgressBar", "ModelCheckpoint"]
    assert setup.module.hparams.width == 3
    assert setup.trainer["max_epochs"] == 2
    assert found.settings["model.init_args.width"] == 3


def test_a_trial_is_the_run_that_lightnings_own_command_makes(config):
    found = Project.read([config], ["WarmupCosine"])  # the other one stays as it is
    assert list(found.techniques) == ["WarmupCosine"]
    torch.manual_seed(0)
    module = found.build(0).module
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer[0][0] if isinstance(optimizer, tuple) else optimizer, torch.optim.Adam)
    measured = run_trial(found.build, [found.techniques["WarmupCosine"]()], seed=0, metric="val_loss")
    assert 0.0 < measured.value < 5.0
    assert not (config.parent / "kept").exists()  # where the configuration keeps its checkpoints
    assert not (config.parent / "lightning_logs").exists()


def test_the_seed_is_that_of_whoever_builds(config):
    found, weights = Project.read([config]), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(found.build(0).module.body[0].weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_other_callbacks_may_be_chosen(config):
    found = Project.read([config], ["ModelCheckpoint", "GradientClip"])
    assert list(found.techniques) == ["GradientClip", "ModelCheckpoint"]
    kinds = [type(each).__name__ for each in found.build(0).trainer["callbacks"]]
    assert kinds == ["LearningRateMonitor", "TQDMProgressBar", "WarmupCosine"]


def test_later_files_add_and_replace(config, tmp_path):
    (tmp_path / "more.yaml").write_text(
        "model: {init_args: {width: 5}}\n"
        "trainer: {callbacks: [{class_path: lightning_tricks.EMAWeights, init_args: {label: slow}}]}\n"
    )
    found = Project.read([config, tmp_path / "more.yaml"])
    assert list(found.techniques) == ["EMAWeights[slow]"]
    setup = found.build(0)
    assert setup.module.hparams.width == 5
    assert setup.trainer["max_epochs"] == 2


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("ckpt_path: null", "ckpt_path: last.ckpt", "ckpt_path must be left out, for trials begin anew"),
        (
            "class_path: project_of_a_user.Net",
            "other: 3",
            "model must have a class_path in the configuration",
        ),
        ("lightning_tricks.", "lightning.pytorch.callbacks.No", "trainer.callbacks must hold callbacks"),
        ("{max_norm: 0.5}", "{max_nrom: 0.5}", "(?s)must hold callbacks: .*did you mean 'max_norm'"),
        ("{max_norm: 0.5}", "{max_norm: -1}", "^GradientClip: max_norm must"),
        ("seed_everything: 7", "seed_everything: [", "config.yaml must be a configuration in YAML"),
    ],
)
def test_what_is_no_such_configuration_is_told(config, before, after, message):
    text = config.read_text()
    assert before in text
    config.write_text(text.replace(before, after))
    with pytest.raises(ValueError, match=message):
        Project.read([config])


def test_names_that_are_not_there_are_told(config):
    with pytest.raises(ValueError, match="techniques must be one of .*did you mean 'GradientClip'"):
        Project.read([config], ["GradientClp"])
    config.write_text(config.read_text().replace("{width: 3}", "{widht: 3}"))
    with pytest.raises(ValueError, match="(?s)must be one that LightningCLI reads: .*widht"):
        Project.read([config]).build(0)
