"""Stages of a network: partition, parameter groups."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from lightning_tricks.core.checks import listed
from lightning_tricks.core.partition import partition as parts_of
from lightning_tricks.lifecycle.table import text_table
from lightning_tricks.network.stage_table import STAGE_COLUMNS, stage_rows
from lightning_tricks.network.stages import check_same as check_same_
from lightning_tricks.network.stages import (
    open_stages_,
    split_by_stage_,
)

partition = partial(parts_of, name="stages", part="stage")


class Net(nn.Module):
    """A token, eleven layers, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(2))
        self.layer = nn.ModuleList(nn.Linear(2, 2) for _ in range(11))
        self.norm = nn.LayerNorm(2)
        self.act = nn.ReLU()
        self.head = nn.Linear(2, 1)


def test_layer_1_is_not_layer_10():
    first, *_ = partition(
        Net(), ["layer.1", ("layer.0", "layer.[2-9]", "layer.10"), ("head", "norm", "token")]
    )
    assert list(first) == ["layer.1.weight", "layer.1.bias"]


def test_pattern_without_match_is_an_error():
    with pytest.raises(ValueError, match=r"stages\[1\] must match a parameter, got 'hed'.*nearest: 'head'"):
        partition(Net(), ["layer", "hed"])


def test_parameters_in_two_stages_are_an_error_that_says_what_to_do():
    expected = (
        r"one stage, got 'head.weight', 'head.bias' in stages\[0\] \(head\) and stages\[1\] \(\*\): "
        "narrow the patterns of one of them"
    )
    with pytest.raises(ValueError, match=expected):
        partition(Net(), ["head", "*"])


def test_of_many_parameters_in_two_stages_five_are_named():
    expected = r"got 'token', 'layer.0.weight', .*, 'layer.1.bias' and 22 more in stages\[0\]"
    with pytest.raises(ValueError, match=expected) as caught:
        partition(Net(), ["*", "*", "head"])
    assert str(caught.value).count("'") == 2 * 5


def test_the_first_two_stages_that_overlap_are_shown():
    expected = r"got 'head.weight', 'head.bias' in stages\[0\] \(head\) and stages\[2\] \(head\)"
    with pytest.raises(ValueError, match=expected):
        partition(Net(), ["head", "norm", "head", "norm"])


def test_tied_parameter_is_in_the_stages_of_all_its_names():
    module = nn.ModuleDict({"embed": nn.Embedding(3, 2), "head": nn.Linear(2, 3, bias=False)})
    module["head"].weight = module["embed"].weight
    with pytest.raises(ValueError, match="one stage, got 'embed.weight' .* tied count under all"):
        partition(module, ["head", "embed"])


def test_parameter_in_no_stage_is_an_error_unless_frozen():
    module = Net()
    expected = (
        "stages must hold each parameter, got none for 'token', 'norm.weight', 'norm.bias': "
        "add a last stage with patterns for them, or name them in one, or freeze them"
    )
    with pytest.raises(ValueError, match=expected):
        partition(module, ["head", "layer"])
    module.token.requires_grad_(False)
    module.norm.requires_grad_(False)
    assert len(partition(module, ["head", "layer"])) == 2


def test_of_many_parameters_in_no_stage_five_are_named():
    with pytest.raises(
        ValueError, match="got none for 'token', .*, 'layer.1.bias' and 20 more: add"
    ) as caught:
        partition(Net(), ["head"])
    assert str(caught.value).count("'") == 2 * 5


def test_types_and_predicates_select():
    first, second = partition(Net(), [nn.LayerNorm, lambda name, _: not name.startswith("norm")])
    assert list(first) == ["norm.weight", "norm.bias"]
    assert len(second) == 1 + 22 + 2


def test_opening_tells_what_is_new_and_drops_gradients_of_the_rest():
    module = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    module(torch.ones(1, 1)).sum().backward()
    stages = partition(module, ["1", "0"])
    assert open_stages_(stages, 1) == {}
    assert [p.requires_grad for p in module.parameters()] == [False, False, True, True]
    assert [p.grad is None for p in module.parameters()] == [True, True, False, False]
    assert list(open_stages_(stages, 2)) == ["0.weight", "0.bias"]
    assert all(p.requires_grad for p in module.parameters())


def depths_of(module, *patterns):
    return {p: k for k, stage in enumerate(partition(module, patterns)) for p in stage.values()}


def test_groups_are_split_by_hand_worked_rates():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1))
    decayed = [m.weight for m in module]
    plain = [m.bias for m in module]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": plain, "weight_decay": 0.0, "lr": 0.4, "betas": (0.5, 0.9)}],
        lr=0.8,
        weight_decay=0.3,
    )
    before = optimizer.param_groups
    split_by_stage_(optimizer, depths_of(module, "2", "1", "0"), 0.5)
    assert optimizer.param_groups is before
    rates = [(group["lr"], group["initial_lr"], group["weight_decay"]) for group in before]
    assert rates == [
        (0.8, 0.8, 0.3), (0.4, 0.4, 0.3), (0.2, 0.2, 0.3),
        (0.4, 0.4, 0.0), (0.2, 0.2, 0.0), (0.1, 0.1, 0.0),
    ]  # fmt: skip
    assert [group["params"][0] for group in before] == [*reversed(decayed), *reversed(plain)]
    assert {group["betas"] for group in before[3:]} == {(0.5, 0.9)}
    assert all(group.keys() == {*optimizer.defaults, "params", "initial_lr"} for group in before)


def test_split_keeps_order_names_and_tensor_rates_apart():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    named = [{"params": list(module.named_parameters()), "name": "all"}]
    optimizer = torch.optim.Adam(named, lr=torch.tensor(0.8), capturable=False, foreach=False)
    split_by_stage_(optimizer, depths_of(module, "1", "0"), 0.5)
    first, second = optimizer.param_groups
    assert first["param_names"] == ["1.weight", "1.bias"]
    assert second["param_names"] == ["0.weight", "0.bias"]
    assert (first["name"], second["name"]) == ("all/stage 1", "all/stage 2")
    first["lr"].fill_(7.0)
    assert second["lr"] == 0.4


def test_split_leaves_frozen_parameters_a_group_of_their_own():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    module[0].requires_grad_(False)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.8)
    split_by_stage_(optimizer, depths_of(module, "1"), 0.5)
    assert [group["params"][0] for group in optimizer.param_groups] == [module[1].weight, module[0].weight]
    assert [group["lr"] for group in optimizer.param_groups] == [0.8, 0.8]


def test_a_group_within_one_stage_stays_whole():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(
        [{"params": m.parameters(), "name": str(i)} for i, m in enumerate(module)], lr=1.0
    )
    split_by_stage_(optimizer, depths_of(module, "1", "0"), 0.5)
    assert [(group["name"], group["lr"]) for group in optimizer.param_groups] == [("0", 0.5), ("1", 1.0)]


def test_split_is_refused_where_groups_cannot_differ():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    depths = depths_of(module, "1", "0")
    with pytest.raises(ValueError, match="lr_factor must be 1, and warmup 0, with LBFGS"):
        split_by_stage_(torch.optim.LBFGS(module.parameters()), depths, 0.5)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    optimizer.param_groups[0]["lr"] = None
    with pytest.raises(
        ValueError, match="lr_factor must be 1, and warmup 0, for groups without a rate, got 0.5 for lr=None"
    ):
        split_by_stage_(optimizer, depths, 0.5)


def test_same_stages_are_required():
    stages = partition(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), ["1", "0"])
    saved = {"stages": [["1.weight", "1.bias"], ["0.weight", "0.bias"]], "lr_factor": 0.5, "split": True}
    check_same = partial(check_same_, split=True)
    check_same(saved, stages, 0.5)
    with pytest.raises(ValueError, match=r"stages\[0\] held '1.weight', '1.bias'; got '0.weight', '0.bias'"):
        check_same(saved, stages[::-1], 0.5)
    with pytest.raises(ValueError, match=r"stages\[1\] held '0.weight', '0.bias'; got nothing"):
        check_same(saved, stages[:1], 0.5)
    with pytest.raises(ValueError, match=r"lr_factor must be that of the checkpoint, .* 0.5; got 1"):
        check_same(saved, stages, 1)
    with pytest.raises(ValueError, match="warmup must be above 0 where lr_factor is 1, as in the checkpoint"):
        check_same_(saved, stages, 0.5, split=False)
    with pytest.raises(ValueError, match="warmup must not be above 0 where lr_factor is 1"):
        check_same_({**saved, "split": False}, stages, 0.5, split=True)


def test_long_lists_are_cut():
    assert listed([]) == ""
    assert listed(list("abcdefg")) == "'a', 'b', 'c', 'd', 'e' and 2 more"


def test_table_counts_what_learns_so_far():
    module = nn.Sequential(nn.Linear(100, 20), nn.Linear(20, 3), nn.Linear(3, 1))
    module[0].weight.requires_grad_(False)
    patterns = [("2", nn.LayerNorm), "1", "0.bias"]
    members = partition(module, ["2", *patterns[1:]])
    rows = list(stage_rows(module, patterns, members, ["start", "1 epoch", "2 epochs"], 0.5))
    assert rows == [
        ("1", "2, LayerNorm", "start", "2", "4", "1", "4"),
        ("2", "1", "1 epoch", "2", "63", "0.5", "67"),
        ("3", "0.bias", "2 epochs", "1", "20", "0.25", "87"),
        ("-", "frozen, in no stage", "never", "1", "2,000", "-", "87"),
    ]
    table = text_table("A title", STAGE_COLUMNS, rows)
    assert table.splitlines()[0] == "A title"
    assert (
        "| 2     | 1                   | 1 epoch  |       2 |         63 | 0.5         |               67 |"
        in table
    )
    assert table.isascii()
