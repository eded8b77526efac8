"""``lightning-tricks recipe``: what it prints, that LightningCLI reads it, and which mistakes it tells."""

from __future__ import annotations

import shlex

import pytest

import lightning_tricks as lt
from lightning_tricks.cli import main
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.recipes import finetune, gan, transformer
from lightning_tricks.recipes.ready import READY
from tests.toys import Loader, Toy
from tests.yaml_trainer import yaml_trainer


def printed(capsys, *argv):
    assert main(["recipe", *argv]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.isascii()
    return shown.out


def test_the_table_is_the_lists(capsys):
    assert printed(capsys, "transformer") == f"{transformer()}\n"
    assert printed(capsys, "gan", "--generator", "g.*") == f"{gan(generator='g.*')}\n"


@pytest.mark.parametrize("name", READY)
def test_yaml_beside_a_configuration_of_ones_own_trains_with_the_list(name, capsys, tmp_path):
    ready, own = tmp_path / "techniques.yaml", tmp_path / "own.yaml"
    ready.write_text(printed(capsys, name, "--yaml"))
    own.write_text("trainer: {max_epochs: 7, logger: false}\n")
    runner = yaml_trainer(["--config", str(ready), "--config", str(own)], Toy)
    assert runner.max_epochs == 7
    usual = {"finetune": {"stages": ["head", "body"]}}.get(name, {})
    built = [each for each in runner.callbacks if isinstance(each, Technique)]
    assert sorted(map(repr, built)) == sorted(map(repr, READY[name](**usual)))


def test_yaml_of_fine_tuning_runs_as_it_is_printed(capsys, tmp_path):
    path = tmp_path / "techniques.yaml"
    path.write_text(printed(capsys, "finetune", "--yaml"))
    quiet = {"logger": "false", "enable_progress_bar": "false", "enable_checkpointing": "false"}
    settings = {"max_epochs": 2, "accelerator": "cpu", **quiet}
    words = [f"--trainer.{name}={value}" for name, value in settings.items()]
    runner = yaml_trainer(["--config", str(path), *words], Toy)
    runner.fit(Toy(optimizer="Adam"), Loader(2), Loader(1, fixed=True))
    (unfreeze,) = (each for each in runner.callbacks if isinstance(each, lt.ProgressiveUnfreeze))
    assert unfreeze.outcome()["opened"] == 2


def test_stages_are_written_as_in_yaml(capsys):
    shown = printed(capsys, "finetune", "--stages", "[head, [blocks.1, norm], 'blocks.0']")
    assert shown == f"{finetune(stages=['head', ('blocks.1', 'norm'), 'blocks.0'])}\n"


def test_help_shows_the_names_and_examples_that_run(capsys):
    shown = printed(capsys, "--help")
    assert shown.startswith("usage: lightning-tricks recipe NAME [options]\n")
    assert all(name in shown for name in READY)
    examples = [
        line.partition(">")[0] for line in shown.splitlines() if line.startswith("  lightning-tricks")
    ]
    assert len(examples) == 3
    for example in examples:
        assert main(shlex.split(example)[1:]) == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["transfomer"],
            "name must be one of 'finetune', 'from_scratch_cnn', 'transformer', 'gan', got 'transf",
        ),
        ([], "name must be given; see lightning-tricks recipe --help"),
        (["gan", "--stages", "[head]"], "--stages must be left out for gan, got ['head']"),
        (["finetune", "--generator", "g"], "--generator must be left out for finetune, got 'g'"),
        (
            ["finetune", "--stages", "[]"],
            "stages must be a list with the patterns of each stage, or how many there are, got []",
        ),
        (
            ["gan", "--yml"],
            "nrecognized arguments: --yml; did you mean --yaml? see lightning-tricks recipe --help",
        ),
    ],
)
def test_a_mistake_is_one_line_and_code_2(argv, message, capsys):
    assert main(["recipe", *argv]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("lightning-tricks: error: ")
    assert shown.err.count("\n") == 1
    assert message in shown.err
