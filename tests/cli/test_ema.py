"""``lightning-tricks ema``: what it writes, prints, measures and draws, and which mistakes it tells."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_tricks import PostHocEMA, synthesize_ema
from lightning_tricks.cli import main
from tests.toys import Loader, Toy, assert_equal, trainer


class Saved(Toy):
    """A module with hyperparameters."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(lr=0.01)
        self.save_hyperparameters()
        self.wide = nn.Linear(3, width)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    runner = trainer(PostHocEMA(snapshot_every=2), default_root_dir=root, max_epochs=4)
    runner.fit(Saved(width=5), Loader())
    runner.save_checkpoint(root / "checkpoints" / "last.ckpt")
    return root / "checkpoints"


def score(state: dict[str, Tensor]) -> dict[str, float]:
    return {"norm": float(state["head.weight"].norm()), "steps": int(state["body.1.num_batches_tracked"])}


def test_it_writes_a_checkpoint_for_each_length(checkpoints, tmp_path, capsys):
    assert main(["ema", str(checkpoints), "--sigma-rel", "0.05,0.15", "--output", str(tmp_path / "new")]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("10 snapshots in ")
    assert "0.15" in shown
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["ema-0.05.ckpt", "ema-0.15.ckpt"]
    for sigma_rel in (0.05, 0.15):
        path = tmp_path / "new" / f"ema-{sigma_rel}.ckpt"
        module = Saved.load_from_checkpoint(path, weights_only=True)
        assert module.wide.out_features == 5
        assert_equal(dict(module.state_dict()), synthesize_ema(checkpoints, sigma_rel=sigma_rel))
        held = torch.load(path, weights_only=True)
        assert held["post_hoc_ema"]["step"] == 20
        assert not held.keys() & {"callbacks", "optimizer_states", "loops"}


def test_it_writes_beside_the_checkpoints_and_replaces_nothing_unasked(checkpoints, tmp_path, capsys):
    (tmp_path / "last.ckpt").write_bytes(b"damaged")
    (tmp_path / "post_hoc_ema").symlink_to(checkpoints / "post_hoc_ema")
    argv = ["ema", str(tmp_path), "--sigma-rel", "0.1"]
    assert main(argv) == 0
    before = (tmp_path / "ema-0.1.ckpt").stat()
    assert main(argv) == 2
    assert "ema-0.1.ckpt, which is there: overwrite=True (--force) replaces it" in capsys.readouterr().err
    assert (tmp_path / "ema-0.1.ckpt").stat().st_ino == before.st_ino
    assert main([*argv, "--force"]) == 0
    assert (tmp_path / "ema-0.1.ckpt").stat().st_ino != before.st_ino
    # Without a checkpoint that can be read there are no hyperparameters.
    module = Saved.load_from_checkpoint(tmp_path / "ema-0.1.ckpt", width=5, weights_only=True)
    assert_equal(dict(module.state_dict()), synthesize_ema(checkpoints, sigma_rel=0.1))


def test_a_dry_run_lists_snapshots_and_writes_nothing(checkpoints, tmp_path, capsys):
    argv = ["ema", str(checkpoints), "--output", str(tmp_path), "--step", "16", "--dry-run"]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert "000010-" in shown
    assert str(tmp_path / "ema-0.15.ckpt")[:20] in shown
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["step"] for each in found["snapshots"]] == list(range(2, 21, 2))
    assert (found["step"], found["dry_run"]) == (16, True)
    assert [each["sigma_rel"] for each in found["averages"]] == [0.05, 0.1, 0.15]
    assert found["averages"][0]["file"] == str(tmp_path / "ema-0.05.ckpt")
    assert not list(tmp_path.iterdir())


def test_it_measures_and_draws(checkpoints, tmp_path, capsys):
    png = tmp_path / "lengths.png"
    argv = ["ema", str(checkpoints), "--evaluate", f"{__name__}:score", "--json", "--png", str(png)]
    assert main([*argv, "--sigma-rel", "0.1,0.2"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["averages"]
    for row in found:
        assert row["metrics"] == pytest.approx(score(synthesize_ema(checkpoints, sigma_rel=row["sigma_rel"])))
        assert row["file"] is None
    assert png.stat().st_size > 1000
    assert not list(checkpoints.glob("ema-*"))
    argv[argv.index("--json")] = "--force"
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert "norm" in shown
    assert f"written: {png}" in shown


def test_safetensors_hold_the_same(checkpoints, tmp_path):
    load_file = pytest.importorskip("safetensors.torch").load_file
    argv = [
        "ema",
        str(checkpoints),
        "--sigma-rel",
        "0.1",
        "--format",
        "safetensors",
        "--output",
        str(tmp_path),
    ]
    assert main(argv) == 0
    assert_equal(load_file(tmp_path / "ema-0.1.safetensors"), synthesize_ema(checkpoints, sigma_rel=0.1))


def test_a_missing_package_is_named_before_anything_is_written(checkpoints, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    argv = ["ema", str(checkpoints), "--output", str(tmp_path)]
    assert main([*argv, "--evaluate", f"{__name__}:score", "--png", "a.png"]) == 2
    assert 'pip install "lightning_tricks[plots]"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["no/such"], "no/such must be a folder of snapshots with their index.json"),
        ([], "error: folder must be given; see lightning-tricks ema --help"),
        (["FOLDER", "--sigma-rel", "wide"], "sigma-rel must be numbers such as 0.05,0.1, got 'wide'"),
        (["FOLDER", "--sigma-rel", "0.1,0.1"], "sigma-rel must name each width once, got '0.1,0.1'"),
        (["FOLDER", "--sigma-rel", "0.5"], "sigma_rel must lie in [0.0001, 0.288"),
        (
            ["FOLDER", "--sigma-rel", "0.01"],
            "sigma_rel must be a width that the 10 snapshots until step 20 can",
        ),
        (["FOLDER", "--step", "3"], "step must be that of a snapshot, nearest 2, 4"),
        (["FOLDER", "--step", "three"], "--step must be a whole number, got three; see"),
        (
            ["FOLDER", "--format", "ckp"],
            "format must be one of 'ckpt', 'safetensors', got 'ckp'; did you mean 'ckpt'",
        ),
        (["FOLDER", "--evaluate", "score"], "evaluate must be written as MODULE:FUNCTION, got 'score'"),
        (["FOLDER", "--evaluate", "no_such:f"], "evaluate must name a function that can be imported"),
        (["FOLDER", "--evaluate", f"{__name__}:f"], "evaluate must name a function that can be imported"),
        (["FOLDER", "--png", "a.png"], "png must be left out without --evaluate, got 'a.png'"),
        (["FOLDER", "--outptu", "a"], "did you mean --output? see lightning-tricks ema --help"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(argv, message, checkpoints, capsys):
    assert main(["ema", *(str(checkpoints) if each == "FOLDER" else each for each in argv)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("lightning-tricks: error: ")
    assert shown.err.count("\n") == 1
    assert message in shown.err


def test_help_shows_examples(capsys):
    assert main(["ema", "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: lightning-tricks ema FOLDER [options]\n")
    assert shown.count("\n  lightning-tricks ema ") == 4
    assert "(default: the last)" in " ".join(shown.split())


def text(state):
    return "good"


def test_what_is_no_measure_is_refused_in_a_line(checkpoints, capsys):
    assert main(["ema", str(checkpoints), "--sigma-rel", "0.1", "--evaluate", f"{__name__}:text"]) == 2
    assert "evaluate must return a number, or numbers by name, got text: 'good'" in capsys.readouterr().err
