"""WeightFusion over the file of a base: it goes before the snapshots, and must fit before the first batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import lightning_tricks as lt
from lightning_tricks.fusion.methods import FusionMethod
from tests.fusion.runs import Epochs, always, fit
from tests.toys import Compiled, Toy, assert_equal, weights

METHODS: dict[str, Callable[[str], FusionMethod]] = {
    "TaskArithmetic": lambda base: lt.TaskArithmetic(scale=0.4, base=base),
    "Ties": lambda base: lt.Ties(0.5, weights=(1.0, 2.0), base=base),
    "Dare": lambda base: lt.Dare(0.5, base=base),
    "Breadcrumbs": lambda base: lt.Breadcrumbs(base=base),
    "ModelStock": lambda base: lt.ModelStock(base=base),
    "Layerwise": lambda base: lt.Layerwise({"body": lt.Ties(0.5, base=base), "*": lt.Average()}),
}


def pretrained() -> dict[str, Tensor]:
    """Return weights that the module did not begin with."""
    return {
        name: value + 0.5 if value.is_floating_point() else value for name, value in weights(Toy()).items()
    }


@pytest.mark.parametrize("name", list(METHODS))
def test_the_base_goes_before_the_snapshots(name: str, tmp_path: Path) -> None:
    path, spy = tmp_path / "base.ckpt", Epochs()
    torch.save({"state_dict": pretrained(), "epoch": 3}, path)
    method = METHODS[name](str(path))
    module, _ = fit(tmp_path, spy, always(method=method, collect=lt.LastEpochs(2)))
    assert_equal(weights(module), method.fuse([pretrained(), *spy.ends[-2:]]))
    about = torch.load(tmp_path / "checkpoints" / "fused.ckpt", weights_only=True)["fusion"]
    assert about["settings"].get("base", str(path)) == str(path)
    assert about["models"][0] == {"name": str(path), "size": path.stat().st_size}
    assert len(about["models"]) == 3


def test_the_same_as_fusing_the_files_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "base.pt"
    torch.save(pretrained(), path)
    method = lt.Ties(0.5, base=str(path))
    fit(tmp_path, always(method=method, collect=lt.LastEpochs(2)))
    files = sorted((tmp_path / "checkpoints" / "snapshots").iterdir())
    again = lt.fuse(files, method, tmp_path / "again.ckpt")
    assert isinstance(again, Path)
    ours, theirs = (
        torch.load(file, weights_only=True) for file in (tmp_path / "checkpoints" / "fused.ckpt", again)
    )
    assert_equal(dict(ours["state_dict"]), dict(theirs["state_dict"]))
    for model in theirs["fusion"]["models"][1:]:
        model["name"] = Path(model["name"]).name
    assert ours["fusion"] == theirs["fusion"]


def test_a_base_by_the_names_of_a_module_that_is_not_compiled(tmp_path: Path) -> None:
    path, spy = tmp_path / "base.pt", Epochs()
    torch.save(pretrained(), path)
    method = lt.TaskArithmetic(base=str(path))
    module, _ = fit(tmp_path, spy, always(method=method, collect=lt.LastEpochs(1)), module=Compiled())
    base = dict(zip(spy.ends[-1], pretrained().values(), strict=True))
    assert_equal(weights(module), method.fuse([base, spy.ends[-1]]))


def nan(state: dict[str, Tensor]) -> None:
    state["head.bias"][0] = torch.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "base must be a file that is there, got '.*base.pt'"),
        (lambda state: state.pop("head.bias"), "head.bias must be in every model; the module has it, .*base"),
        (
            lambda state: state.update(extra=torch.ones(1)),
            r"extra must .*base.pt has it, the module has not",
        ),
        (
            lambda state: state.update({"head.bias": torch.ones(7)}),
            r"head.bias must have one shape .* and \(7,\)",
        ),
        (
            lambda state: state.update({"head.bias": state["head.bias"].double()}),
            "head.bias must have one type",
        ),
        (nan, "head.bias of .*base.pt must hold numbers to be fused, got NaN"),
        (lambda state: state.update(about=Path("x")), "base.pt"),
    ],
)
def test_a_base_that_does_not_fit_is_refused_before_the_first_batch(
    change: Callable[[dict[str, Tensor]], None] | None, message: str, tmp_path: Path
) -> None:
    path, spy = tmp_path / "base.pt", Epochs()
    if change is not None:
        state = pretrained()
        change(state)
        torch.save(state, path)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        fit(tmp_path, spy, always(method=lt.Ties(base=str(path))))
    assert spy.steps == []


def test_a_base_counts_as_one_model() -> None:
    always(method=lt.ModelStock(base="b.ckpt"), collect=lt.LastEpochs(2))
    message = r"at least 3 snapshots, its base counted as one, for ModelStock\(base='b.ckpt'\), got LastEpoc"
    with pytest.raises(ValueError, match=message):
        always(method=lt.ModelStock(base="b.ckpt"), collect=lt.LastEpochs(1))


def test_without_a_snapshot_the_base_alone_is_not_fused(tmp_path: Path) -> None:
    path, spy = tmp_path / "base.pt", Epochs()
    torch.save(pretrained(), path)
    layers = lt.Layerwise({"*": lt.Ties(0.5, base=str(path))})
    early, told = "will leave the weights", "left the weights as they are: .* collects 0 snapshots"
    with pytest.warns(UserWarning, match=early), pytest.warns(UserWarning, match=told):
        module, _ = fit(tmp_path, spy, always(method=layers, collect=lt.EverySteps(99, k=2)))
    assert_equal(weights(module), spy.ends[-1])
