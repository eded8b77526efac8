import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from lightning_tricks.core.select import clean_name, matches, resolved, select
from lightning_tricks.lifecycle.slots import find_slots


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
        ("*", "", True),
        ("head", "", False),
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


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("body[-1]", r": a child by its position is a slice, as in 'body\[-1:\]'; nearest: "),
        ("body[-3].0", r"as in 'body\[-3:-2\]'; nearest: "),
        ("body[0]", r"as in 'body\[0:1\]'; nearest: "),
        ("nn.Conv2d", r": a type has its whole path, 'torch.nn.Conv2d'; nearest: "),
    ],
)
def test_another_notation_is_told_apart(pattern: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        select(nn.Sequential(nn.Linear(2, 2)), pattern)


def test_no_match_lists_the_nearest_names() -> None:
    with pytest.raises(ValueError, match=r"params must match .* got 'layer2', .* nearest: .*'layer1'"):
        select(Tied(), "layer2")
    with pytest.raises(ValueError, match=r"blocks must match .* ReLU has none"):
        select(nn.ReLU(), "*", name="blocks")


def test_a_parametrized_weight_goes_by_its_plain_name_wherever_it_stands() -> None:
    layer = spectral_norm(nn.Linear(2, 2))
    assert list(select(layer, "weight")) == ["parametrizations.weight.original"]
    assert list(select(nn.Sequential(layer), "0.weight")) == ["0.parametrizations.weight.original"]


@pytest.mark.parametrize("bad", [(), "", 3, ("a", 1.5), int, None])
def test_refuses_what_is_no_pattern(bad: object) -> None:
    with pytest.raises((TypeError, ValueError), match="params must"):
        select(Tied(), bad)


class Deep(nn.Module):
    """Five layers of which the third has no parameters, in a row; a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*(nn.Linear(2, 2) for _ in range(2)), nn.Tanh(), nn.BatchNorm1d(2), Tied())
        self.head = nn.Linear(2, 1)


def holders(module: nn.Module, pattern: str) -> list[str]:
    """Return the modules that hold what ``pattern`` selects."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in select(module, pattern)))


@pytest.mark.parametrize("cut", [(None, -3), (1, None), (-2, None), (1, 4), (-100, 100), (None, None)])
def test_a_slice_takes_the_children_that_pythons_does(cut: tuple[int | None, int | None]) -> None:
    module = Deep()
    first, last = ("" if index is None else index for index in cut)
    expected = [p for part in module.body[slice(*cut)] for p in part.parameters()]
    assert list(map(id, select(module, f"body[{first}:{last}]").values())) == list(map(id, expected))


def test_slices_of_the_module_itself_of_parts_and_of_several() -> None:
    module = Deep()
    assert holders(module, "[-1:]") == ["head"]
    assert holders(module, "bod?[:1]") == ["body.0"]
    assert list(select(module, "body[:2].bias")) == ["body.0.bias", "body.1.bias"]
    assert holders(module, "[:1][-1:][1:3]") == ["body.4.layer1", "body.4.layer10"]


def test_a_slice_sees_through_compilation_and_takes_names_literally() -> None:
    module = nn.ModuleDict({"a[b]*": torch.compile(Deep(), backend="eager"), "ab": nn.Linear(2, 2)})
    assert holders(module, "[:1].body[:1]") == ["a[b]*.body.0"]
    assert holders(module, "[1:]") == ["ab"]


@pytest.mark.parametrize("pattern", ["body[5:]", "body[2:3]", "hed[:1]", "body.0[:1]"])
def test_a_slice_without_parameters_is_an_error(pattern: str) -> None:
    with pytest.raises(ValueError, match=f"got {pattern!r}, which matches none".replace("[", r"\[")):
        select(Deep(), pattern)


def test_a_set_of_characters_is_no_slice() -> None:
    assert resolved(Deep(), "body.[0-2].weight") == ["body.[0-2].weight"]


def test_a_type_is_written_by_its_path() -> None:
    assert list(select(Deep(), "torch.nn.BatchNorm1d")) == ["body.3.weight", "body.3.bias"]
    full = f"{nn.BatchNorm1d.__module__}.BatchNorm1d"
    assert list(select(Deep(), full)) == ["body.3.weight", "body.3.bias"]
    assert holders(Deep(), f"{Tied.__module__}.Tied") == ["body.4.embed", "body.4.layer1", "body.4.layer10"]
    with pytest.raises(ValueError, match="got 'torch.nn.LayerNorm', which matches none"):
        select(Deep(), "torch.nn.LayerNorm")
    with pytest.raises(ValueError, match="got 'torch.nn.functional', which matches none"):
        select(Deep(), "torch.nn.functional")


@pytest.mark.parametrize("pattern", ["body[3:4]", "torch.nn.BatchNorm1d"])
def test_buffers_are_found_in_the_same_ways(pattern: str) -> None:
    found = find_slots(Deep(), pattern, buffers=True)
    assert sorted(found) == [f"body.3.{name}" for name in ("bias", "running_mean", "running_var", "weight")]
