"""Methods that choose among models, or weigh them, say how: in the file, on the command line, as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from lightning_tricks import Aligned, Average, GreedySoup, LearnedSoup, NelderMeadSoup, Probe, fuse
from lightning_tricks.cli import main
from tests.fusion.stored import plain


def near_three(model: dict[str, Tensor]) -> float:
    return -abs(float(model["weight"]) - 3.0)


def far_from_three(model: dict[str, Tensor]) -> float:
    return -near_three(model)


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Models of which the first two, at 0 and 4, are nearer to 3 together than either is."""
    return [str(plain({"weight": torch.tensor([[v]])}, tmp_path / f"{v:g}.pt")) for v in (0.0, 4.0, 9.0)]


SOUP = {"members": [0, 1], "scores": [-3.0, -1.0, -6.0], "score": -1.0}


@pytest.mark.parametrize("method", [GreedySoup(), Aligned(GreedySoup(), spec={"weight": [None, "in"]})])
def test_the_members_of_a_soup_stand_in_the_file(method: Any, paths: list[str], tmp_path: Path) -> None:
    fuse(paths, method, whole := tmp_path / "soup.ckpt", evaluate=near_three)
    assert torch.load(whole, weights_only=True)["fusion"]["found"] == SOUP
    fuse(paths, method, bare := tmp_path / "soup.safetensors", evaluate=near_three)
    with safe_open(bare, "pt") as file:
        assert json.loads(file.metadata()["fusion"])["found"] == SOUP
        assert file.get_tensor("weight").item() == 2.0


def test_so_do_coefficients_and_of_others_there_are_none(paths: list[str], tmp_path: Path) -> None:
    def found(method: Any, **given: Any) -> dict[str, Any]:
        fuse(paths[:2], method, path := tmp_path / "fused.ckpt", overwrite=True, **given)
        about: dict[str, Any] = torch.load(path, weights_only=True)
        share = about["state_dict"]["weight"].item() / 4.0
        if method != Average():
            assert about["fusion"]["found"]["coefficients"] == pytest.approx([1.0 - share, share], abs=1e-6)
        return about["fusion"]

    assert "found" in found(NelderMeadSoup(), evaluate=near_three)
    batches = [torch.ones(2, 1)]
    probe = Probe(torch.nn.Linear(1, 1, bias=False), batches, lambda net, x: (net(x) - 3.0).square().mean())
    assert found(LearnedSoup(), probe=probe)["found"]["coefficients"] == pytest.approx([0.25, 0.75], abs=1e-3)
    assert "found" not in found(Average())


def test_the_command_line_says_which_models_were_taken(paths: list[str], tmp_path: Path, capsys: Any) -> None:
    given = ["fuse", *paths, "-o", str(tmp_path / "soup.ckpt"), "--force", "--method"]
    assert main([*given, "greedy_soup", "--evaluate", f"{__name__}:near_three"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [
        "2 of 3 are taken, together at -1:",
        f"  {paths[0]}: -3, taken",
        f"  {paths[1]}: -1, taken",
        f"  {paths[2]}: -6, left",
    ]
    metric = ["--evaluate", f"{__name__}:far_from_three", "--mode", "min"]
    assert main([*given, "greedy_soup", *metric]) == 0
    assert f"together at 1:\n  {paths[0]}: 3, taken\n" in capsys.readouterr().out
    assert main([*given, "greedy_soup", "--evaluate", f"{__name__}:near_three", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["found"] == SOUP
    assert main([*given, "nelder_mead_soup", "--evaluate", f"{__name__}:near_three"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert main([*given, "average"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
