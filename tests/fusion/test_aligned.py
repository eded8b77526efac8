"""Models aligned before they are fused, through the three doors."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

import lightning_tricks as lt
from lightning_tricks.cli import main
from lightning_tricks.fusion.permutations import permuted, places
from tests.fusion.runs import Epochs, always, fit
from tests.toys import Toy, assert_equal, weights
from tests.yaml_trainer import yaml_trainer


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))


SPEC = lt.permutation_spec(network(0))


class Forward(Toy):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def shuffled(state: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    units = {name: found[0].units for name, found in places(SPEC, state).items()}
    return permuted(state, SPEC, {n: torch.randperm(k, generator=generator) for n, k in units.items()})


def test_permuted_copies_are_fused_into_the_first_to_the_bit() -> None:
    first = network(0).state_dict()
    copies = [first, *(shuffled(first, seed) for seed in range(3))]
    assert not torch.equal(lt.Average().fuse(copies)["0.weight"], first["0.weight"])
    assert_equal(lt.Aligned(spec=SPEC).fuse(copies), first)
    assert_equal(lt.Aligned(spec=SPEC, to="mean").fuse(copies), first)


def test_the_first_has_its_order_and_all_its_weight() -> None:
    models = [network(seed).state_dict() for seed in range(2)]
    assert_equal(lt.Aligned(lt.Interpolate(1.0), spec=SPEC).fuse(models), models[0])
    second = lt.Aligned(lt.Interpolate(0.0), spec=SPEC).fuse(models)
    assert not torch.equal(second["0.weight"], models[1]["0.weight"])
    torch.testing.assert_close(second["0.weight"].sort(0)[0], models[1]["0.weight"].sort(0)[0])


def test_what_the_method_needs_is_asked_for() -> None:
    aligned = lt.Aligned(lt.Ties(base="base.ckpt"))
    assert (aligned.base, aligned.count, aligned.least, aligned.entrywise) == ("base.ckpt", None, 2, False)
    soup = lt.Aligned(lt.GreedySoup("val_loss", mode="min"), spec=SPEC)
    assert soup.objective == ("val_loss", "min") and lt.Aligned(lt.Slerp(0.5)).count == 2
    first = network(0).state_dict()
    fused = soup.fuse([first, shuffled(first, 0)], lambda model: 0.0)
    assert_equal(fused, first)


def test_a_recipe_of_methods_may_follow() -> None:
    models = [network(0).state_dict(), shuffled(network(0).state_dict(), 1)]
    then = lt.Layerwise({"3.*": lt.Interpolate(1.0), "*": lt.Average()})
    assert_equal(lt.Aligned(then, spec=SPEC).fuse(models), models[0])


def test_modules_tell_their_spec() -> None:
    models = [network(0), network(0)]
    models[1].load_state_dict(shuffled(models[0].state_dict(), 0))
    assert_equal(lt.fuse(models, lt.Aligned()), models[0].state_dict())
    with pytest.raises(ValueError, match="spec must be given where no module is at hand to find it from"):
        lt.fuse([model.state_dict() for model in models], lt.Aligned())


@pytest.mark.parametrize("kind", ["yaml", "json"])
def test_the_command_line_takes_a_file_and_recipes_another_method(
    kind: str, tmp_path: Path, capsys: Any
) -> None:
    models = [network(0).state_dict(), shuffled(network(1).state_dict(), 0)]
    paths = [str(tmp_path / f"{index}.pt") for index in range(2)]
    for state, path in zip(models, paths, strict=True):
        torch.save(state, path)
    spec = tmp_path / f"spec.{kind}"
    lists = {name: list(axes) for name, axes in SPEC.items() if axes is not None}
    spec.write_text(json.dumps(lists) if kind == "json" else yaml.safe_dump(lists))
    output, other = tmp_path / "fused.ckpt", tmp_path / "other.ckpt"
    assert main(["fuse", *paths, "--method", "aligned", "--spec", str(spec), "-o", str(output)]) == 0
    fused = torch.load(output, weights_only=True)
    assert_equal(fused["state_dict"], lt.Aligned(spec=SPEC).fuse(models))
    assert fused["fusion"]["settings"]["spec"] == str(spec)
    recipe = {
        **{"models": paths, "method": "aligned", "output": str(other)},
        "parameters": {"spec": str(spec), "then": {"method": "slerp", "parameters": {"t": 0.25}}},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["fuse", str(tmp_path / "recipe.yaml")]) == 0
    expected = lt.Aligned(lt.Slerp(0.25), spec=SPEC).fuse(models)
    assert_equal(torch.load(other, weights_only=True)["state_dict"], expected)
    capsys.readouterr()
    assert main(["fuse", *paths, "--method", "aligned", "-o", str(tmp_path / "third.ckpt")]) == 2
    assert "spec must be given" in capsys.readouterr().err and not (tmp_path / "third.ckpt").exists()


def test_a_method_within_learns_of_the_module_too() -> None:
    soup = lt.Aligned(lt.Aligned()).for_module(network(0))
    assert isinstance(soup, lt.Aligned) and isinstance(soup.then, lt.Aligned)
    assert soup.spec == soup.then.spec == SPEC


def test_in_training_the_module_tells_it(tmp_path: Path) -> None:
    method, spy = lt.Aligned(lt.Interpolate(0.25)), Epochs()
    fusion = always(method=method, collect=lt.LastEpochs(2))
    module, _ = fit(tmp_path, spy, fusion, module=Forward())
    spec = lt.permutation_spec(Forward())
    assert_equal(weights(module), lt.Aligned(lt.Interpolate(0.25), spec=spec).fuse(spy.ends[-2:]))
    text = lt.to_yaml(fusion)
    runner = yaml_trainer({"trainer": {**yaml.safe_load(text)["trainer"], "logger": False}}, Toy)
    (again,) = [each for each in runner.callbacks if isinstance(each, lt.WeightFusion)]
    assert again.method == method


def test_a_module_that_tells_none_is_refused_before_training(tmp_path: Path) -> None:
    class Sorting(Toy):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x).sort(1).values)

    spy = Epochs()
    with pytest.raises(ValueError, match="units in sort, at sort is not known"):
        fit(tmp_path, spy, always(method=lt.Aligned()), module=Sorting())
    assert spy.steps == []


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(TypeError, match=r"then must be a FusionMethod such as Average\(\), got 3"):
        lt.Aligned(3)  # type: ignore[arg-type]
    fisher = lt.FisherWeighted(("a", "b"))
    for method in (fisher, lt.Layerwise({"*": fisher})):
        with pytest.raises(ValueError, match="then must hold no method that looks at data, which it does"):
            lt.Aligned(method)
    with pytest.raises(ValueError, match="to must be one of 'first', 'mean', got 'last'"):
        lt.Aligned(to="last")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="spec must have a list of axes, or nothing, for a, got 'P'"):
        lt.Aligned(spec={"a": "P"})


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    models = [network(seed).state_dict() for seed in range(2)]
    with pytest.raises(ModuleNotFoundError, match=r'pip install "lightning_tricks\[alignment\]"'):
        lt.Aligned(spec=SPEC).fuse(models)
