from __future__ import annotations

import numpy as np
import pytest
import torch

import lightning_tricks as lt
from lightning_tricks.fusion.layerwise import Layerwise, layerwise
from lightning_tricks.fusion.over_depth import OverDepth, at_depth, depths

NAMES = ["stem.w", *(f"blocks.{index}.w" for index in (0, 1, 10, 2)), "head.w"]


def models(*values: float) -> list[dict[str, torch.Tensor]]:
    return [{name: torch.tensor([value, 1.0]) for name in NAMES} for value in values]


def test_the_first_match_of_whole_names_decides():
    recipe = {"blocks.1": lt.Interpolate(1.0), "blocks.1*": lt.Interpolate(0.75), "*": lt.Interpolate(0.0)}
    fused = layerwise(models(0.0, 4.0), recipe)
    shares = {name: fused[name][0].item() for name in NAMES}
    wanted = {**dict.fromkeys(NAMES, 4.0), "blocks.1.w": 0.0, "blocks.10.w": 1.0}
    assert shares == wanted


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            {"blocks": lt.Average()},
            r"no pattern of \['blocks'\] matches 'stem.w', 'head.w'; '\*' as the last",
        ),
        (
            {"bloks.1.w": lt.Average(), "*": lt.Average()},
            "got 'bloks.1.w', which matches none .* nearest: 'blocks.1.w'",
        ),
        ({"*": lt.Average(), "head": lt.Average()}, "got 'head', which matches none that no earlier one"),
    ],
)
def test_tensors_and_patterns_without_match_are_refused_by_name(recipe, message):
    with pytest.raises(ValueError, match=message):
        layerwise(models(0.0, 1.0), recipe)


@pytest.mark.parametrize(
    ("recipe", "error", "message"),
    [
        ({}, TypeError, "recipe must be a dict of patterns and methods, got {}"),
        ({"*": lt.GreedySoup()}, TypeError, r"one that fuses tensor by tensor, .* got GreedySoup.* for '\*'"),
        ({"": lt.Average()}, ValueError, "every pattern of recipe must not be empty"),
        ({"a": lt.Slerp(0.5), "*": lt.FedAvg((1, 1, 1))}, ValueError, "must have one number of models"),
        ({"a": lt.Ties(base="a"), "*": lt.Ties(base="b")}, ValueError, "recipe must have one base"),
    ],
)
def test_wrong_recipes_are_refused(recipe, error, message):
    with pytest.raises(error, match=message):
        Layerwise(recipe)


def test_a_base_file_goes_to_the_methods_that_name_it_alone():
    recipe = Layerwise({"blocks": lt.TaskArithmetic(base="base.ckpt"), "*": lt.Average()})
    assert recipe.base == "base.ckpt" and recipe.count is None and recipe.least == 2
    fused = recipe.fuse(models(100.0, 1.0, 3.0))
    assert fused["head.w"][0] == 2.0 and fused["blocks.0.w"][0] == 100.0 - 99.0 - 97.0
    both = Layerwise({"blocks": lt.TaskArithmetic(base="base.ckpt"), "*": lt.Interpolate(0.5)})
    assert both.count == 3 and not both.accepts(2)


def test_a_recipe_within_a_recipe():
    inner = Layerwise({"*.1": lt.Interpolate(1.0), "*": lt.Interpolate(0.5)})
    fused = layerwise(models(0.0, 4.0), {"blocks": inner, "*": lt.Interpolate(0.0)})
    assert [fused[name][0].item() for name in NAMES] == [4.0, 2.0, 0.0, 2.0, 2.0, 4.0]


def test_over_depth_is_numpys_interpolation_over_the_layers():
    names = [f"blocks.{index}.w" for index in range(12)]
    points = [0.9, 0.1, 0.3]
    wanted = np.interp(np.arange(12) / 11, np.linspace(0, 1, 3), points)
    found = depths(sorted(names))  # as a file has them: 0, 1, 10, 11, 2
    alphas = [at_depth([lt.Interpolate(point) for point in points], found[name]).alpha for name in names]
    np.testing.assert_allclose(alphas, wanted, atol=1e-12)


def test_layers_of_several_stages_are_in_the_order_of_their_patterns():
    names = ["encoder.0.w", "encoder.1.w", "decoder.0.w", "decoder.1.w", "stem.w"]
    assert list(depths(names, ("stem", "encoder.*", "decoder.*")).values()) == [0.25, 0.5, 0.75, 1.0, 0.0]
    resnet = ["layer1.0.conv1.w", "layer1.1.conv2.w", "layer2.0.conv1.w"]
    assert list(depths(resnet).values()) == [0.0, 0.5, 1.0]
    assert depths(["_orig_mod.blocks.3.w"]) == {"_orig_mod.blocks.3.w": 0.0}


def test_over_depth_within_a_recipe():
    ends = (lt.Average((1.0, 0.0)), lt.Average((0.0, 1.0)))
    fused = layerwise(models(0.0, 3.0), {"blocks": OverDepth(ends), "*": lt.Average()})
    assert [fused[f"blocks.{index}.w"][0].item() for index in (0, 1, 2, 10)] == [0.0, 1.0, 2.0, 3.0]
    assert fused["head.w"][0] == 1.5


def test_a_tensor_in_no_layer_is_refused_by_name():
    method = OverDepth((lt.Slerp(0.0), lt.Slerp(1.0)))
    with pytest.raises(
        ValueError, match="'stem.w', 'head.w' are in none with a number in its name: use Layerw"
    ):
        method.fuse(models(0.0, 1.0))
    method = OverDepth((lt.Slerp(0.0), lt.Slerp(1.0)), layers=("*", "tail"))
    with pytest.raises(ValueError, match="layers must match modules, got 'tail', which matches none"):
        method.fuse(models(0.0, 1.0))


@pytest.mark.parametrize(
    ("methods", "error", "message"),
    [
        ((lt.Slerp(0.0),), TypeError, r"methods must be at least two methods, got \(Slerp"),
        ((lt.Slerp(0.0), lt.Interpolate(0.5)), TypeError, "methods must be of one kind"),
        (
            (lt.Ties(base="a"), lt.Ties(base="b")),
            ValueError,
            "differ in numbers alone, got 'a' and 'b' for base",
        ),
        ((lt.Dare(seed=0), lt.Dare(seed=1)), TypeError, "seed must be a whole number, got 0.5"),
        ((lt.GreedySoup(), lt.GreedySoup()), TypeError, "methods must be of one kind that fuses tensor"),
        ((lt.FedAvg((1, 1)), lt.FedAvg((1, 1, 1))), ValueError, "differ in numbers alone"),
    ],
)
def test_wrong_methods_are_refused(methods, error, message):
    with pytest.raises(error, match=message):
        OverDepth(methods)
