"""Every method of the package fuses the snapshots of a run, or is refused before the first batch."""

from __future__ import annotations

import dataclasses
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import lightning_tricks as lt
from lightning_tricks.cli.methods import METHODS
from lightning_tricks.fusion.base_file import BaseFile
from lightning_tricks.fusion.candidates import check_method
from tests.fusion.runs import Epochs, always, fit
from tests.fusion.test_laws import LAWS
from tests.toys import Toy, assert_equal, weights

# Those that know names need those of the module.
OF_NAMES = {
    "Layerwise": lt.Layerwise({"head": lt.Slerp(0.25), "*": lt.Average()}),
    "OverDepth": lt.OverDepth((lt.Interpolate(0.0), lt.Interpolate(0.5)), layers=("body", "head")),
    "FisherWeighted": lt.FisherWeighted(("a.fisher.pt", "b.fisher.pt")),
}
# Those that look at data or the module have tests in files of their own.
WITH_DATA = {"Aligned", "GreedySoup", "LearnedSoup", "NelderMeadSoup", "RegMean"}
NAMES = [kind.__name__ for kind in METHODS.values() if kind.__name__ not in WITH_DATA]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with the file of a base, a fusion that has collected, and what it has seen."""
    folder, spy, fusion = tmp_path_factory.mktemp("run"), Epochs(), always(collect=lt.LastEpochs(3))
    fit(folder, spy, fusion)
    torch.save(weights(Toy()), folder / "base.pt")
    ones = {name: torch.full_like(value, 2.0) for name, value in Toy().named_parameters()}
    torch.save({name: value / 2 for name, value in ones.items()}, folder / "a.fisher.pt")
    torch.save(ones, folder / "b.fisher.pt")
    return folder, fusion, spy.ends


@pytest.mark.parametrize("name", NAMES)
def test_it_fuses_snapshots_and_takes_a_base_from_a_file(
    name: str, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, fusion, ends = run
    monkeypatch.chdir(folder)
    method = OF_NAMES[name] if name in OF_NAMES else LAWS[name].method
    count = method.count or 3
    tried = fusion._candidates(fusion._shelf, lambda: 0)
    some = SimpleNamespace(kept=fusion._shelf.kept[-count:], load=fusion._shelf.load)
    check_method(method, tried.weights)
    assert_equal(dataclasses.replace(tried, shelf=some, method=method).fused(), method.fuse(ends[-count:]))
    if hasattr(method, "base") and "base" in {each.name for each in dataclasses.fields(method)}:
        over = dataclasses.replace(method, base="base.pt")
        some.kept = some.kept[1:]
        base = BaseFile("base.pt", tried.weights)
        fused = dataclasses.replace(tried, shelf=some, method=over, base=base).fused()
        assert_equal(fused, over.fuse([weights(Toy()), *ends[-count + 1 :]]))


def test_what_needs_files_that_are_not_there_is_refused_before_the_first_batch(tmp_path: Path) -> None:
    spy = Epochs()
    method = lt.FisherWeighted((str(tmp_path / "no.pt"), str(tmp_path / "none.pt")))
    with pytest.raises(FileNotFoundError, match=r"every file of fishers must be there, but .*no.pt' is not"):
        fit(tmp_path, spy, always(method=method, collect=lt.LastEpochs(2)))
    assert spy.steps == []


class Tied(Toy):
    """A second head has the weight of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.twin = torch.nn.Linear(8, 3)
        self.twin.weight = self.head.weight


def test_tied_weights_stay_tied_in_each_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(Tied().state_dict(), tmp_path / "base.pt")
    method, spy = lt.Dare(0.5, base=str(tmp_path / "base.pt")), Epochs()
    fusion = always(method=method, collect=lt.LastEpochs(2))
    module, _ = fit(tmp_path, spy, fusion, module=Tied())
    tried = fusion._candidates(fusion._shelf, lambda: 0)
    # What comes from another process is a copy of its own.
    monkeypatch.setattr(tried.weights.trainer.strategy, "broadcast", deepcopy)
    models = [tried.base.tensors(), *tried.snapshots()]
    pickled = [{name: value.clone() for name, value in model.items()} for model in models]
    assert not torch.equal(*(method.fuse(pickled)[f"{name}.weight"] for name in ("head", "twin")))
    for model in models:
        assert model["twin.weight"].data_ptr() == model["head.weight"].data_ptr()
    fused = method.fuse(
        [{name: value for name, value in model.items() if name != "twin.weight"} for model in pickled]
    )
    assert torch.equal(module.head.weight, fused["head.weight"])
