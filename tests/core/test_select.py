import pytest
import torch
from torch import nn

from lightning_tricks.core.select import clean_name, matches, select


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.layer1 = nn.Linear(3, 3)
        self.layer10 = nn.Linear(3, 3)
        self.out = nn.Linear(3, 5, bias=False)
        self.out.weight = self.embed.weight


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("layer.1", "layer.1.weight", True),
        ("layer.1", "layer.10.weight", False),  # a prefix is no match
        ("layer.?", "layer.10.weight", False),
        ("layer.*", "layer.10.weight", True),
        ("*.bias", "a.b.bias", True),
        ("head", "head", True),
        ("head", "overhead", False),
        ("layer.[12]", "layer.2.weight", True),
        ("*", "anything.at.all", True),
    ],
)
def test_matches_whole_names_of_parameters_and_their_modules(pattern: str, name: str, expected: bool) -> None:
    assert matches(pattern, name) is expected


def test_selects_by_name_type_and_predicate_in_module_order() -> None:
    module = Tied()
    assert list(select(module, ("layer10", "layer1"))) == [
        "layer1.weight",
        "layer1.bias",
        "layer10.weight",
        "layer10.bias",
    ]
    assert list(select(module, nn.Embedding)) == ["embed.weight"]
    assert list(select(module, lambda name, p: p.ndim == 1)) == ["layer1.bias", "layer10.bias"]


def test_tied_parameter_is_one_whichever_name_matches() -> None:
    module = Tied()
    assert list(select(module, "out.weight")) == ["embed.weight"]
    assert len(select(module, "*")) == 5
    assert select(module, "out")["embed.weight"] is module.embed.weight


def test_sees_through_compilation_and_sharding() -> None:
    module = nn.Sequential(torch.compile(nn.Linear(2, 2), backend="eager"))
    assert list(select(module, "0")) == ["0.weight", "0.bias"]
    assert clean_name("a._fsdp_wrapped_module.b._checkpoint_wrapped_module.c") == "a.b.c"
    assert clean_name("_orig_mod.a") == "a"
    assert clean_name("my_orig_mod.a") == "my_orig_mod.a"


def test_no_match_lists_the_nearest_names() -> None:
    with pytest.raises(ValueError, match=r"params must match .* got 'layer2', .* nearest: .*'layer1'"):
        select(Tied(), "layer2")
    with pytest.raises(ValueError, match=r"blocks must match .* ReLU has none"):
        select(nn.ReLU(), "*", name="blocks")


@pytest.mark.parametrize("bad", [(), "", 3, ("a", 1.5), int, None])
def test_refuses_what_is_no_pattern(bad: object) -> None:
    with pytest.raises((TypeError, ValueError), match="params must"):
        select(Tied(), bad)
