"""``lightning-tricks groups``: the groups are those that the project's training begins with."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from lightning_tricks.cli import main
from tests.study.small import project

OWN = """
import torch
from project_of_groups import Data, Net

class Two(Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        head = torch.optim.AdamW(self.body[2].parameters(), lr=0.01, weight_decay=0.3)
        return head, torch.optim.SGD([self.body[0].weight], lr=0.1)

class Wrong(Net):
    def configure_optimizers(self):
        raise ValueError("no\\nway")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of a user's own, as the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("project_of_groups", "own"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    project(tmp_path, "project_of_groups")
    (tmp_path / "own.py").write_text(OWN)
    for name in ("Two", "Wrong"):
        # What these are trained on does not matter here.
        trainer = "{accelerator: gpu, devices: 8, strategy: fsdp}"
        config = f"model: {{class_path: own.{name}}}\ndata: {{class_path: own.Data}}\ntrainer: {trainer}\n"
        (tmp_path / f"{name}.yaml").write_text(config)
    return tmp_path


def test_groups_have_their_base_rates_and_nothing_is_trained_or_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name for path in folder.iterdir()}
    assert main(["groups", "config.yaml"]) == 0
    shown = capsys.readouterr()
    title, *_, row, schedule = shown.out.splitlines()
    assert title.startswith("Net: Adam(")  # of the configuration, which goes before the module's own
    # 4 inputs, 3 hidden units, 1 output; two moments and a count of 4 tensors.
    assert [cell.strip() for cell in row.split("|")[1:-1]] == ["0", "*", "4", "19", "0.01", "0", "168 B"]
    assert schedule.startswith("at the first step schedules multiply these rates by 0.")
    assert shown.err == ""
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == before


def test_several_optimizers_and_what_none_of_them_has(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["groups", "Two.yaml", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["in_no_group"] == ["body.0.bias"]
    adam, sgd = told["optimizers"]
    assert (adam["optimizer"], sgd["optimizer"]) == ("AdamW", "SGD")
    assert adam["groups"] == [
        {
            "name": "0",
            "holds": "body.2.*",
            "tensors": 2,
            "frozen": 0,
            "parameters": 5,
            "lr": 0.01,
            "weight_decay": 0.3,
            "state_bytes": 48,  # two moments of each parameter, a count of each tensor, in 32 bits
            "first_factor": 1.0,
            "names": ["body.2.weight", "body.2.bias"],
        }
    ]
    assert [group["names"] for group in sgd["groups"]] == [["body.0.weight"]]
    assert main(["groups", "Two.yaml"]) == 0
    assert capsys.readouterr().out.endswith("in no group, and so never changed: 'body.0.bias'\n")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "config must be given; see lightning-tricks groups --help"),
        (["none.yaml"], "none.yaml: No such file or directory"),
        (["Wrong.yaml"], "no way"),
        (["Two.yaml", "--jsn"], "did you mean --json?"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(
    argv: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["groups", *argv]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("lightning-tricks: error: ")
    assert shown.err.count("\n") == 1
    assert message in shown.err
