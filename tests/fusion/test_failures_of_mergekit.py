"""What mergekit 0.1.4 or 0.1.5 cannot do with ordinary networks of PyTorch and Lightning, or does wrongly.

Beside the laws of ``test_laws``, the prefixes of names in ``test_engine`` and the types in
``test_beside_mergekit``, which hold where it fails, too.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_tricks as lt
from lightning_tricks.fusion.by_names import ByNames
from lightning_tricks.fusion.methods import FusionMethod
from tests.fusion.stored import lightnings, plain
from tests.fusion.test_laws import LAWS, Law

BY_NAME = {name: law for name, law in LAWS.items() if not isinstance(law.method, ByNames)}


class Ordinary(nn.Module):
    """A network with BatchNorm, and tensors of no dimension, of one entry and of whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("steps", torch.tensor([1, 2, 3]))
        self.register_buffer("on", torch.tensor(True))


def network(seed: int) -> OrderedDict[str, Tensor]:
    """Return one that has been trained for ``seed + 1`` steps."""
    torch.manual_seed(seed)
    module = Ordinary()
    module.blocks.train()
    for _ in range(seed + 1):
        module.blocks(torch.randn(8, 4))
    with torch.no_grad():
        module.temperature += 0.1 * seed
        module.steps += seed
    return module.state_dict()  # type: ignore[return-value]


def fused(method: FusionMethod, count: int, write: Any, folder: Path, **settings: Any) -> dict[str, Any]:
    paths = [write(network(seed), folder / f"{seed}.ckpt") for seed in range(count)]
    written = lt.fuse(paths, method, folder / "fused.ckpt", **settings)
    found: dict[str, Any] = torch.load(written, weights_only=True)["state_dict"]  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("write", [lightnings, plain])
@pytest.mark.parametrize("law", BY_NAME.values(), ids=BY_NAME)
def test_every_method_fuses_networks_with_counters_and_tensors_of_one_entry(
    law: Law, write: Any, tmp_path: Path
) -> None:
    """KeyError of .ckpt, TypeError of .pt with 0-d tensors; NaN, casts and assertions of most methods."""
    found = fused(law.method, law.count, write, tmp_path)
    module = Ordinary()
    module.load_state_dict(found)
    last = network(law.count - 1)
    for name, value in found.items():
        assert value.dtype == last[name].dtype and value.isfinite().all(), name
        if not value.is_floating_point():
            assert torch.equal(value, last[name])


def test_all_of_the_changes_may_be_kept(tmp_path: Path) -> None:
    """A density of 1 made an error of casting counters."""
    found = fused(lt.Ties(1.0, weights=(1.0, 0.0)), 3, plain, tmp_path)
    for name, value in network(1).items():
        if value.is_floating_point():
            torch.testing.assert_close(found[name], value)


def test_a_tensor_of_one_entry_is_not_trimmed_to_nothing(tmp_path: Path) -> None:
    """An assertion in TIES; breadcrumbs drops the change of 1 entry."""
    for method in (lt.Ties(0.5), lt.Breadcrumbs(0.5, gamma=0.1)):
        found = fused(method, 2, plain, tmp_path, overwrite=True)
        torch.testing.assert_close(found["temperature"], network(1)["temperature"])
        torch.testing.assert_close(found["blocks.2.bias"], network(1)["blocks.2.bias"])


def test_a_weight_of_0_is_0(tmp_path: Path) -> None:
    """An IndexError, since 0 was taken for missing; if all are 0, NaN in every tensor."""
    found = fused(lt.Average((0.0, 1.0)), 2, plain, tmp_path)
    assert all(torch.equal(found[name], value) for name, value in network(1).items())
    for build in (lambda: lt.Average((0.0, 0.0)), lambda: lt.Ties(weights=(0.0, 0.0))):
        with pytest.raises(ValueError, match="weights must"):
            build()


def test_settings_may_be_left_out(tmp_path: Path) -> None:
    """An AttributeError of models without parameters, an IndexError of parameters with a default."""
    found = fused(lt.Average(), 2, plain, tmp_path)
    wanted = (network(0)["temperature"] + network(1)["temperature"]) / 2
    torch.testing.assert_close(found["temperature"], wanted)


def test_values_over_depth_change_over_depth(tmp_path: Path) -> None:
    """Of a list of values only the first was taken, without a word."""
    depth = lt.OverDepth((lt.Interpolate(1.0), lt.Interpolate(0.0)))
    found = fused(lt.Layerwise({"blocks.*": depth, "*": lt.Average()}), 2, plain, tmp_path)
    first, second = network(0), network(1)
    for layer, share in ((0, 0.0), (1, 0.5), (2, 1.0)):
        name = f"blocks.{layer}.weight"
        torch.testing.assert_close(found[name], first[name].lerp(second[name], share))


def test_a_tensor_that_some_models_lack_can_be_taken_from_those_that_have_it(tmp_path: Path) -> None:
    """A KeyError with --tensor-union."""
    lacking = network(0)
    del lacking["temperature"]
    found = lt.fuse([network(1), lacking], allow_missing=True)
    assert torch.equal(found["temperature"], network(1)["temperature"])  # type: ignore[index]


@pytest.mark.parametrize("method", [lt.Slerp(0.5), lt.ModelStock(), lt.SimilarityWeighted()], ids=repr)
def test_norms_beyond_the_largest_half_are_computed(method: FusionMethod) -> None:
    """The norm of a tensor of float16 overflowed, and made it NaN."""
    generator = torch.Generator().manual_seed(0)
    count = method.count or 3
    models = [{"w": (torch.randn(300, generator=generator) * 1e4).half()} for _ in range(count)]
    wanted = method.fuse([{"w": model["w"].double()} for model in models])["w"]
    assert models[0]["w"].double().norm() > torch.finfo(torch.float16).max
    torch.testing.assert_close(method.fuse(models)["w"].double(), wanted, rtol=1e-3, atol=1.0)


def test_what_is_not_a_number_in_an_input_is_named() -> None:
    """It went into the result without a word."""
    damaged = network(1)
    damaged["blocks.0.bias"][2] = torch.nan
    with pytest.raises(
        ValueError, match=r"blocks.0.bias must be finite in every model, but is not in model 1"
    ):
        lt.fuse([network(0), damaged])
