"""``lightning-tricks fuse``: functions of the user's own that methods evaluate by or look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import lightning_tricks as lt
from tests.cli.test_fuse import loaded, printed, refused
from tests.fusion.stored import plain
from tests.toys import assert_equal


class Linear(torch.nn.Linear):
    """A module of models of 3 x 2."""

    def __init__(self) -> None:
        super().__init__(3, 2)


def score(model: dict[str, torch.Tensor]) -> dict[str, float]:
    return {"far": float((model["weight"] - 0.3).abs().sum()), "near": -float(model["bias"].abs().sum())}


def one_score(model: dict[str, torch.Tensor]) -> float:
    return -score(model)["far"]


def probe() -> lt.Probe:
    torch.manual_seed(0)
    return lt.Probe(Linear(), [torch.randn(9, 3)], lambda module, x: (module(x) - 0.3).square().mean())


def no_probe() -> int:
    return 3


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    models = [
        {"weight": torch.randn(2, 3, generator=generator), "bias": torch.randn(2, generator=generator)}
        for _ in range(3)
    ]
    return [str(plain(model, tmp_path / f"{index}.pt")) for index, model in enumerate(models)]


def test_methods_that_evaluate_or_look_at_data_get_functions_by_name(
    small: list[str], tmp_path: Path, capsys: Any
) -> None:
    output = tmp_path / "fused.ckpt"

    def fused(*argv: str) -> dict[str, Any]:
        printed(capsys, *argv, "-o", str(output), "--force")
        return loaded(output)

    by_far = ("--method", "greedy_soup", "--evaluate", f"{__name__}:score", "--monitor", "far")
    models = [torch.load(path) for path in small]
    assert_equal(
        fused(*small, *by_far, "--mode", "min"),
        lt.fuse(models, lt.GreedySoup(), evaluate=lambda model: -score(model)["far"]),
    )
    assert_equal(fused(*small, *by_far), lt.fuse(models, lt.GreedySoup(), evaluate=lambda m: score(m)["far"]))
    assert_equal(
        fused(*small, "--method", "nelder_mead_soup", "--evaluate", f"{__name__}:one_score"),
        lt.fuse(models, lt.NelderMeadSoup(), evaluate=one_score),
    )
    method: lt.RegMean | lt.LearnedSoup
    for name, method in (("reg_mean", lt.RegMean()), ("learned_soup", lt.LearnedSoup())):
        wanted = lt.fuse(models, method, probe=probe())
        assert_equal(fused(*small, "--method", name, "--probe", f"{__name__}:probe"), wanted)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"models: [{', '.join(small)}]\nmethod: learned_soup\nparameters: {{per: layer, sign: affine}}\n"
        f"probe: {__name__}:probe\n"
    )
    wanted = lt.fuse(models, lt.LearnedSoup(per="layer", sign="affine"), probe=probe())
    assert_equal(fused(str(recipe)), wanted)
    shown = printed(capsys, *small, "--method", "reg_mean", "--dry-run")
    assert "nothing has been written" in shown


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--method", "greedy_soup"], "evaluate must be given for GreedySoup(monitor=None, mode=None)"),
        (["--method", "reg_mean"], "probe must be given for RegMean("),
        (["--evaluate", f"{__name__}:score"], "evaluate must be left out for Average(weights=None), which"),
        (
            ["--probe", f"{__name__}:probe"],
            "probe must be left out for Average(weights=None), which",
        ),
        (["--method", "reg_mean", "--probe", f"{__name__}:no_probe"], "that returns a Probe, got 3 from"),
        (["--method", "reg_mean", "--probe", "no_such:x"], "probe must name a function that can be imported"),
        (["--method", "greedy_soup", "--evaluate", "scores"], "evaluate must be written as MODULE:FUNCTION"),
        (
            ["--method", "greedy_soup", "--evaluate", f"{__name__}:score"],
            "what tests.cli.test_fuse_functions:score returns, 'far', 'near', got None: give --monitor",
        ),
        (
            ["--method", "greedy_soup", "--evaluate", f"{__name__}:score", "--monitor", "fat"],
            "monitor must be one of 'far', 'near', got 'fat'; did you mean 'far'?",
        ),
    ],
)
def test_functions_that_lack_or_do_not_fit_are_one_line(
    argv: list[str], message: str, small: list[str], tmp_path: Path, capsys: Any
) -> None:
    assert message in refused(capsys, *small, *argv, "-o", str(tmp_path / "fused.ckpt"))
    assert not [*tmp_path.glob("fused*")]
