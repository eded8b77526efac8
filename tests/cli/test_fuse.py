"""``lightning-tricks fuse``: what it does, shows and refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.filesize import decimal

import lightning_tricks
from lightning_tricks import Average, Interpolate
from lightning_tricks.cli import main
from lightning_tricks.cli.fuse_settings import bytes_of
from lightning_tricks.cli.methods import METHODS
from lightning_tricks.fusion.methods import FusionMethod
from tests.fusion.stored import lightnings, plain, state
from tests.toys import assert_equal


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Two checkpoints."""
    return [str(lightnings(state(seed), tmp_path / f"{'ab'[seed]}.ckpt")) for seed in range(2)]


def printed(capsys: Any, *argv: str) -> str:
    assert main(["fuse", *argv]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.isascii()
    out: str = shown.out
    return out


def refused(capsys: Any, *argv: str) -> str:
    assert main(["fuse", *argv]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("lightning-tricks: error: ")
    assert shown.err.count("\n") == 1
    err: str = shown.err
    return err


def loaded(path: Path | str) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(path, weights_only=True)["state_dict"]
    return dict(found)


def test_the_methods_are_those_that_the_package_offers() -> None:
    offered = {getattr(lightning_tricks, name) for name in lightning_tricks.__all__}
    assert set(METHODS.values()) == {
        each for each in offered if isinstance(each, type) and issubclass(each, FusionMethod)
    }


def test_settings_of_a_method_are_options(paths: list[str], tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "fused.ckpt"
    shown = printed(capsys, *paths, "--method", "interpolate", "--alpha", "0.3", "-o", str(output))
    assert shown.startswith(
        f"written: {output}, {decimal(output.stat().st_size)}, from 2 models by Interpolate(alpha=0.3); "
    )
    assert_equal(loaded(output), Interpolate(0.3).fuse([state(0), state(1)]))
    text = printed(
        capsys,
        *paths,
        "--weights",
        "[0.25, 0.75]",
        "-o",
        str(output),
        "--force",
        "--json",
    )
    told = json.loads(text)
    assert told["models"] == 2 and told["size"] == output.stat().st_size
    assert_equal(loaded(output), Average((0.25, 0.75)).fuse([state(0), state(1)]))
    slerps = '[{"class_path": "lightning_tricks.Slerp", "init_args": {"t": 1.0}}, {"class_path": "Slerp", '
    slerps += '"init_args": {"t": 1.0}}]'
    argv = ("--method", "over_depth", "--methods", slerps, "--layers", '["*"]', "-o", str(output), "--force")
    assert "OverDepth(methods=(Slerp(t=1.0), Slerp(t=1.0))" in printed(capsys, *paths, *argv)


def test_a_recipe_says_the_same_and_options_go_before_it(
    paths: list[str], tmp_path: Path, capsys: Any
) -> None:
    recipe, output = tmp_path / "recipe.yaml", tmp_path / "fused.ckpt"
    recipe.write_text(
        f"models: [{paths[0]}, {paths[1]}]\nmethod: interpolate\nparameters: {{alpha: 0.3}}\n"
        f"output: {tmp_path / 'other.ckpt'}\nmax-memory: 1MB\nsha256: true\n"
    )
    printed(capsys, str(recipe), "-o", str(output))
    assert_equal(loaded(output), Interpolate(0.3).fuse([state(0), state(1)]))
    assert not (tmp_path / "other.ckpt").exists()
    about = torch.load(output, weights_only=True)["fusion"]
    assert about["method"] == "Interpolate" and set(about["models"][0]["sha256"]) == {"a.ckpt"}
    printed(capsys, str(recipe), "--method", "average")
    assert_equal(loaded(tmp_path / "other.ckpt"), Average().fuse([state(0), state(1)]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [a", "must be YAML"),
        ("- a", "must hold models, method, parameters and output, got ['a']"),
        ("models: a.ckpt", "models in {path} must be a list of paths, got 'a.ckpt'"),
        ("{models: [a.ckpt], metod: average}", "every entry of {path} must be one of"),
        ("{models: [a.ckpt], method: avrage}", "got 'avrage'; did you mean 'average'?"),
        (
            "{models: [a.ckpt], parameters: {weigths: [1]}}",
            "parameter of average must be one of 'weights'",
        ),
        ("{models: [a.ckpt], parameters: 3}", "parameters of average must be a mapping, got 3"),
        ("{models: [a.ckpt], method: interpolate}", "alpha must be given for interpolate: --alpha, or under"),
        (
            "{models: [a.ckpt], parameters: {weights: [2.0]}}",
            "weights must be one for each model and make 1 together",
        ),
        ("models: [a.ckpt]", "--output must be given, such as -o fused.ckpt"),
        ("{models: [a.ckpt], output: x.ckpt, force: 'no'}", "force must be True or False, got 'no'"),
        ("{models: [a.ckpt], output: [x.ckpt]}", "output must be text, got ['x.ckpt']"),
        ("{models: [a.ckpt], output: x.ckpt, method: reg_mean, probe: 3}", "probe must be text, got 3"),
        (
            "{models: [a.ckpt], method: aligned, parameters: {then: {method: ties, paramters: {}}}}",
            "every entry of ties must be one of 'method', 'parameters', got 'paramters'",
        ),
    ],
)
def test_a_mistake_in_a_recipe_is_one_line(text: str, message: str, tmp_path: Path, capsys: Any) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    assert message.format(path=recipe) in refused(capsys, str(recipe))


def test_dry_run_shows_what_would_be_done_and_writes_nothing(
    paths: list[str], tmp_path: Path, capsys: Any
) -> None:
    before = sorted(tmp_path.iterdir())
    shown = printed(capsys, *paths, "--dry-run", "-o", str(tmp_path / "fused.ckpt"))
    assert "| embedding.weight = head.weight | 7001 x 3" in shown
    assert "| norm.num_batches_tracked       | -             | int64   | 0.000 | taken from the last" in shown
    assert shown.endswith("of memory for the tensors that are worked on; nothing has been written\n")
    assert f" models ({paths[0]} is the base) by Ties(" in printed(
        capsys, *paths, "--method", "ties", "--dry-run"
    )
    plan = json.loads(printed(capsys, *paths, "--dry-run", "--json", "--max-memory", "100kB"))
    rows = {row["names"][0]: row for row in plan["tensors"]}
    assert rows["embedding.weight"]["action"] == "fused if they differ, in 21 slices"
    assert rows["columns"]["action"] == "fused if they differ"
    assert plan["memory"] <= 100_000
    assert plan["bytes_written"] == sum(row["bytes"] for row in plan["tensors"])
    assert sorted(tmp_path.iterdir()) == before


def test_comparing_shows_each_layer_and_draws(tmp_path: Path, capsys: Any) -> None:
    first = {"body.weight": torch.tensor([3.0, 4.0]), "body.bias": torch.zeros(2), "n": torch.tensor(1)}
    second = {"body.weight": torch.tensor([4.0, 3.0]), "body.bias": torch.zeros(2), "n": torch.tensor(2)}
    paths = [str(plain(model, tmp_path / f"{i}.pt")) for i, model in enumerate((first, second, first))]
    picture = tmp_path / "alike.png"
    shown = printed(capsys, "--compare", *paths, "--png", str(picture))
    assert "| body  | 0.9600 |   0.2828 |    5.0000 |    5.0000 |" in shown
    assert "| body  | 1.0000 |   0.0000 |    5.0000 |    5.0000 |" in shown
    assert shown.count("| all ") == 2
    assert picture.read_bytes().startswith(b"\x89PNG")
    told = json.loads(printed(capsys, "--compare", *paths, "--json"))
    assert told[paths[1]]["body.weight"] == {
        "cosine": pytest.approx(0.96),
        "distance": pytest.approx(2**0.5 / 5),
        "norms": [5.0, 5.0],
    }
    assert told[paths[1]]["body.bias"] == {"cosine": None, "distance": None, "norms": [0.0, 0.0]}


def test_a_curve_is_measured_by_a_function_of_the_users_own(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", sys.path[:])
    Path("hill_of_curve.py").write_text("def loss(state):\n    return float((state['w'] ** 2 - 1) ** 2)\n")
    for name, value in (("a", -1.0), ("b", 1.0)):
        plain({"w": torch.tensor(value)}, Path(f"{name}.pt"))
    asked = ("--curve", "a.pt", "b.pt", "--evaluate", "hill_of_curve:loss", "--points", "5")
    shown = printed(capsys, *asked, "--png", "curve.png")
    assert shown.startswith("loss along the line; 0 is a.pt, 1 is b.pt\n| position |   loss |")
    assert "|     0.25 | 0.5625 |" in shown
    assert shown.endswith("barrier 1 between a.pt and b.pt\nwritten: curve.png\n")
    assert Path("curve.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads(printed(capsys, *asked, "--json"))
    assert told["values"] == [0.0, 0.5625, 1.0, 0.5625, 0.0] and told["barriers"] == [1.0]


def test_help_shows_methods_examples_and_the_options_of_a_method(capsys: Any) -> None:
    shown = printed(capsys, "--help")
    assert shown.startswith("usage: lightning-tricks fuse MODEL... -o OUTPUT [options]")
    assert "\n  lightning-tricks fuse --compare a.ckpt b.ckpt" in shown
    assert all(name in shown for name in METHODS) and "--alpha" not in shown.partition("examples:")[0]
    assert "--alpha" in printed(capsys, "--method", "interpolate", "--help")
    for name in METHODS:
        assert main(["fuse", "--method", name, "--help"]) == 0
    assert "function" not in shown and "null" not in shown


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "models must hold at least one model, got none"),
        (["-o", "x.ckpt"], "models must hold at least one model, got none"),
        (["a.ckpt", "-o", "x.ckpt", "--method", "averge"], "--method must be one of 'aligned', 'average', "),
        (
            ["a.ckpt", "-o", "x.ckpt", "--method", "interpolate", "--alpha", "2"],
            "alpha must lie in",
        ),
        (["a.ckpt", "-o", "x.ckpt", "--method", "interpolate"], "alpha"),
        (["a.ckpt", "-o", "x.ckpt", "--threads", "0"], "threads must be at least 1, got 0"),
        (
            ["a.ckpt", "-o", "x.ckpt", "--max-memory", "much"],
            "max_memory must be a number of bytes",
        ),
        (
            ["a.ckpt", "-o", "x.ckpt", "--which", "best"],
            "which must be one of 'state_dict', ",
        ),
        (["no/such.ckpt", "-o", "x.ckpt"], "no/such.ckpt"),
        (["--compare", "a.ckpt"], "--compare needs at least 2 models, got 1"),
        (["a.ckpt", "-o", "x.ckpt", "--png", "x.png"], "--png must go with --compare or --curve, got x.png"),
        (["--curve", "a.ckpt", "--evaluate", "json:loads"], "--curve needs at least 2 models, got 1"),
        (["--curve", "a.ckpt", "a.ckpt"], "--evaluate must be given for --curve, got none"),
        (
            ["--curve", "a.ckpt", "a.ckpt", "--evaluate", "json:loads", "-o", "x.ckpt"],
            "--output must be left out",
        ),
        (["a.ckpt", "-o", "x.ckpt", "--points", "5"], "--points must be left out without --curve"),
        (
            ["--compare", "a.ckpt", "a.ckpt", "-o", "x.ckpt"],
            "--output must be left out with --compare",
        ),
        (
            ["--compare", "a.ckpt", "a.ckpt", "--png", "no/x.png"],
            "the folder of --png must be there, got no/x.png",
        ),
        (
            ["a.ckpt", "-o", "x.ckpt", "--weights", "1"],
            '--weights must be a list, such as "[0.5, 0.5]", got 1',
        ),
        (
            ["a.ckpt", "-o", "x.ckpt", "--method", "ties", "--density", "x"],
            "--density must be a number, got x;",
        ),
        (["a.ckpt", "-o", "x.ckpt", "--method", "slerp"], "error: --t must be given;"),
        (["--curve", "--compare", "a.ckpt", "a.ckpt"], "--compare and --curve must not go together"),
        (
            ["--curve", "a.ckpt", "a.ckpt", "--evaluate", "json"],
            "must be written as MODULE:FUNCTION, got 'json'",
        ),
        (
            ["--curve", "a.ckpt", "a.ckpt", "--evaluate", "json:no"],
            "must name a function that can be imported",
        ),
        (
            ["--curve", "a.ckpt", "a.ckpt", "--evaluate", "json:loads", "--points", "2"],
            "points must be at least 3",
        ),
        (["--curve", "a.ckpt", "a.ckpt", "--evaluate", "json:dumps"], "Tensor is not JSON serializable"),
        (["a.yaml", "b.ckpt"], "a recipe must stand alone, got b.ckpt after a.yaml"),
        (["no/such.yaml"], "no/such.yaml"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(
    argv: list[str], message: str, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plain(state(0), Path("a.ckpt"))
    assert message in refused(capsys, *argv)
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_what_the_models_hold_is_refused_in_one_line_too(
    paths: list[str], tmp_path: Path, capsys: Any
) -> None:
    output = tmp_path / "fused.ckpt"
    bad = state(1)
    bad["one"][0] = torch.nan
    path = str(plain(bad, tmp_path / "bad.pt"))
    message = refused(capsys, paths[0], path, "-o", str(output))
    assert f"one must be finite in every model, but is not in {path}" in message
    assert not output.exists()
    output.write_text("before")
    assert "--force" in refused(capsys, *paths, "-o", str(output))
    assert "output must be none of the inputs" in refused(capsys, *paths, "-o", paths[0], "--force")
    assert output.read_text() == "before"


@pytest.mark.parametrize(("text", "count"), [("1000", 1000), ("2kB", 2000), ("1.5 GB", 15 * 10**8), (7, 7)])
def test_bytes_are_written_with_units(text: str | int, count: int) -> None:
    assert bytes_of(text) == count
