"""Norms that take the place of others: what they compute, what they hand on, and what is left alone."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import instance_norm, layer_norm

from lightning_tricks.network.frozen_batchnorm import FrozenBatchNorm
from lightning_tricks.network.replace_norm import replace_norm_
from tests.toys import assert_equal

BATCH_TARGETS = ["group", "layer", "instance", "frozen_batch", "sync_batch"]
EXACT = ["frozen_batch", "sync_batch"]


def trained(norm: nn.Module) -> nn.Sequential:
    """Return a network whose norm has weights and statistics of some training."""
    torch.manual_seed(0)
    for value in norm.state_dict().values():
        value.copy_(torch.rand(value.shape) + 0.5 if value.is_floating_point() else torch.tensor(7))
    conv = {nn.BatchNorm2d: nn.Conv2d, nn.BatchNorm3d: nn.Conv3d}.get(type(norm), nn.Conv1d)
    return nn.Sequential(conv(3, 8, 1), norm, nn.ReLU())


def data(axes: int) -> torch.Tensor:
    return torch.randn(4, 3, *([5] * axes), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("to", EXACT)
@pytest.mark.parametrize(("kind", "axes"), [(nn.BatchNorm1d, 1), (nn.BatchNorm2d, 2), (nn.BatchNorm3d, 3)])
def test_what_is_exact_equals_batchnorm_in_eval_mode_to_the_bit(to, kind, axes):
    net = trained(kind(8, eps=1e-3))
    before, state = net.eval()(data(axes)), deepcopy(net.state_dict())
    replace_norm_(net, to=to)
    assert type(net[1]) is {"frozen_batch": FrozenBatchNorm, "sync_batch": nn.SyncBatchNorm}[to]
    assert torch.equal(net(data(axes)), before)
    assert_equal(dict(net.state_dict()), dict(state))
    net.load_state_dict(state)  # one of before, strictly
    plain = trained(kind(8, eps=1e-3))
    plain.load_state_dict(net.state_dict())  # and the other way


def test_a_frozen_batchnorm_does_the_same_in_training_and_learns_its_weights():
    net = trained(nn.BatchNorm2d(8))
    replace_norm_(net, to="frozen_batch")
    before, state = net.eval()(data(2)), deepcopy(dict(net[1].named_buffers()))
    out = net.train()(data(2))
    assert torch.equal(out, before)
    out.sum().backward()
    assert_equal(dict(net[1].named_buffers()), state)
    assert net[1].weight.grad is not None
    assert nn.SyncBatchNorm.convert_sync_batchnorm(net)[1] is net[1]


@pytest.mark.parametrize(
    ("to", "reference"),
    [
        ("layer", lambda x, w, b: layer_norm(x, x.shape[1:], eps=1e-3) * w[:, None, None] + b[:, None, None]),
        ("instance", lambda x, w, b: instance_norm(x, weight=w, bias=b, eps=1e-3)),
        (
            "group",
            lambda x, w, b: (
                layer_norm(x.unflatten(1, (4, 2)), (2, 5, 5), eps=1e-3).flatten(1, 2) * w[:, None, None]
                + b[:, None, None]
            ),
        ),
    ],
)
def test_groups_of_channels_normalise_as_layer_and_instance_norm_do(to, reference):
    net = trained(nn.BatchNorm2d(8, eps=1e-3))
    weight, bias = net[1].weight, net[1].bias
    (told,) = replace_norm_(net, to=to, groups=4 if to == "group" else None)
    assert net[1].weight is weight and net[1].bias is bias
    x = net[0](data(2))
    torch.testing.assert_close(net[1](x), reference(x, weight, bias))
    assert told.carried == ("weight", "bias")
    assert told.dropped == ("running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize(("norm", "shape"), [(nn.BatchNorm1d, (3, 8)), (nn.BatchNorm2d, (3, 8, 1, 1))])
@pytest.mark.parametrize("settings", [{"to": "instance"}, {"to": "group", "groups": 8}])
def test_a_value_is_not_normalised_by_itself(norm, shape, settings):
    net, x = nn.ModuleDict({"norm": norm(8)}), torch.randn(shape)
    (told,) = replace_norm_(net, **settings)
    assert told.after == "GroupNorm(8, 8)"
    for mode in (True, False):
        with pytest.raises(ValueError, match=r"'norm' must have several .*, got \(3, 8.*with to='layer'"):
            deepcopy(net).train(mode)["norm"](x)
    net["norm"](torch.cat([x, -x]).reshape(3, 8, 2, *shape[3:]))
    assert net["norm"](torch.empty(0, 8, 2)).shape == (0, 8, 2)
    other = nn.ModuleDict({"norm": norm(8)})
    replace_norm_(other, to="group", groups=4)
    assert other["norm"](x).any()


def test_rms_divides_by_the_root_of_the_mean_square_and_keeps_the_weight():
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4, eps=1e-3))
    nn.init.uniform_(net[1].weight)
    weight = net[1].weight
    (told,) = replace_norm_(net, to="rms")
    assert type(net[1]) is nn.RMSNorm and net[1].weight is weight
    assert (told.carried, told.dropped) == (("weight",), ("bias",))
    x = torch.tensor([[1.0, 2.0, 2.0, 4.0]])  # mean square 25 / 4
    torch.testing.assert_close(net[1](x), x / (25 / 4 + 1e-3) ** 0.5 * weight)


@pytest.mark.parametrize("to", [*BATCH_TARGETS, "rms"])
@pytest.mark.parametrize("affine", [True, False])
def test_mode_type_and_what_learns_are_handed_on(to, affine):
    norm = nn.LayerNorm(8, elementwise_affine=affine) if to == "rms" else nn.BatchNorm1d(8, affine=affine)
    net = nn.Sequential(nn.Linear(8, 8), norm, nn.Linear(8, 8)).double().eval()
    norm.requires_grad_(False)
    random = torch.get_rng_state()
    replace_norm_(net, to=to, groups=2 if to == "group" else None)
    assert net[1] is not norm and not net[1].training
    assert all(p.dtype == torch.float64 and not p.requires_grad for p in net[1].parameters())
    assert bool(list(net[1].parameters())) is affine
    assert not any(value.is_meta for value in net[1].state_dict().values())
    assert net(torch.ones(3, 8, 8, dtype=torch.float64).cumsum(1)).dtype == torch.float64
    assert torch.equal(torch.get_rng_state(), random)


def test_a_batchnorm_without_bias_hands_its_weight_on():
    norm = nn.BatchNorm1d(4)
    norm.bias = None
    net = nn.Sequential(norm)
    replace_norm_(net, to="frozen_batch")
    assert net[0].bias is None and net[0].weight is norm.weight


def test_a_layer_in_two_places_is_replaced_once():
    shared = nn.BatchNorm1d(4)
    net = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(nn.Linear(4, 4), shared)})
    told = replace_norm_(net, to="layer")
    assert [each.name for each in told] == ["a.0"]
    assert net["a"][0] is net["b"][1]
    assert isinstance(net["a"][0], nn.GroupNorm)


def test_patterns_choose_and_a_second_time_finds_nothing_left_to_do():
    net = nn.ModuleDict({"a": nn.Sequential(nn.BatchNorm1d(4)), "b": nn.Sequential(nn.BatchNorm1d(4))})
    assert len(replace_norm_(net, to="group", params="b", groups=2)) == 1
    assert type(net["a"][0]) is nn.BatchNorm1d
    assert replace_norm_(net, to="group", params="b", groups=2) == []
    assert len(replace_norm_(net, to="group", params=(nn.BatchNorm1d, "b"), groups=2)) == 1
    net = deepcopy(net)
    assert replace_norm_(net, to="group", groups=2) == []


class Activated(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: a norm that ends in its activation."""

    def forward(self, input):
        return super().forward(input).relu()


def hooked() -> nn.Module:
    norm = nn.BatchNorm2d(8)
    norm.register_forward_hook(lambda *_: None)
    return norm


@pytest.mark.parametrize(
    ("norm", "settings", "words"),
    [
        (
            nn.BatchNorm2d(8),
            {"to": "rms"},
            r"params must match a LayerNorm, got '\*', but Sequential has none",
        ),
        (nn.GroupNorm(4, 8), {"to": "group"}, "params must match a BatchNorm"),
        (nn.BatchNorm2d(8), {"to": "layer", "params": "bn"}, "nearest: '1'"),
        (nn.BatchNorm2d(8), {"to": "group"}, "groups must divide the 8 channels of '1', got 32"),
        (nn.BatchNorm2d(8), {"to": "layer", "groups": 2}, "groups must be None unless to is 'group', got 2"),
        (nn.BatchNorm2d(8), {"to": "groups"}, "did you mean 'group'"),
        (Activated(8), {"to": "frozen_batch"}, "got '1' of type Activated, which may do more"),
        (hooked(), {"to": "layer"}, "without hooks, got '1'"),
        (nn.LazyBatchNorm2d(), {"to": "layer"}, "the lazy '1'"),
        (nn.BatchNorm2d(8, track_running_stats=False), {"to": "frozen_batch"}, "running statistics, got '1'"),
    ],
)
def test_what_cannot_be_replaced_is_named_and_nothing_is(norm, settings, words):
    net = nn.Sequential(nn.ReLU(), norm)
    before = list(net)
    with pytest.raises(ValueError, match=words):
        replace_norm_(net, **settings)
    assert list(net) == before


def test_a_norm_alone_is_no_module_that_holds_one():
    with pytest.raises(ValueError, match="BatchNorm1d has none"):
        replace_norm_(nn.BatchNorm1d(4), to="layer")


def test_timms_norm_with_an_activation_is_refused():
    timm = pytest.importorskip("timm.layers")
    net = nn.Sequential(nn.Conv2d(3, 8, 1), timm.BatchNormAct2d(8))
    with pytest.raises(ValueError, match="of type BatchNormAct2d, which may do more"):
        replace_norm_(net, to="layer")


@pytest.mark.parametrize("run_before", [False, True])
def test_a_compiled_part_computes_with_its_new_layers(run_before):
    part = torch.compile(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), backend="aot_eager")
    net, x = nn.Sequential(part), torch.randn(5, 3)
    if run_before:
        net(x)
    (told,) = replace_norm_(net, to="layer")
    assert told.name == "0.1"
    torch.testing.assert_close(net(x), layer_norm(part._orig_mod[0](x), (4,)))


def test_a_layer_that_is_compiled_by_itself_is_refused():
    net = nn.Sequential(torch.compile(nn.BatchNorm1d(4), backend="aot_eager"))
    with pytest.raises(ValueError, match="before they are compiled, got '0'"):
        replace_norm_(net, to="layer")


def test_what_is_sharded_is_refused_with_the_way_out(one_process):
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    fully_shard(net, mesh=one_process)
    with pytest.raises(ValueError, match=r"replace_norm_\(self, to=...\) in configure_model, before fully"):
        replace_norm_(net, to="layer")


@pytest.mark.parametrize("masked", [False, True])
def test_torchs_encoder_takes_its_rms_norms_for_what_they_are(masked):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    net = nn.TransformerEncoder(layer, 2)
    replace_norm_(net, to="rms")
    x = torch.randn(2, 3, 8)
    mask = torch.tensor([[False, False, True]] * 2) if masked else None
    expected = net.train()(x, src_key_padding_mask=mask)
    with torch.no_grad():
        found = net.eval()(x, src_key_padding_mask=mask)
    torch.testing.assert_close(found, expected.detach())
