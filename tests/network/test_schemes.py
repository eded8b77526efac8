"""Fans against what layers really do, deviations against the formulas of the papers, draws against torch."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate, stats
from torch import nn

from lightning_tricks import initialize_
from lightning_tricks.network.fans import layer_fans, weight_blocks
from lightning_tricks.network.gains import following_gain, named_gain
from lightning_tricks.network.schemes import SCHEMES

# Layers of five shapes, with their fans counted by hand.
LAYERS = {
    "linear": (lambda: nn.Linear(300, 200), 300, 200),
    "conv1d": (lambda: nn.Conv1d(32, 64, 5), 32 * 5, 64 * 5),
    "conv2d": (lambda: nn.Conv2d(16, 48, 3, stride=2), 16 * 9, 48 * 9),
    "grouped": (lambda: nn.Conv2d(64, 128, 3, groups=4), 16 * 9, 32 * 9),
    "transposed": (lambda: nn.ConvTranspose2d(32, 48, 4, stride=2), 32 * 16 / 4, 48 * 16),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def expected_variance(scheme: str, n_in: float, n_out: float) -> float:
    """Return the catalogue's variance for ReLU."""
    return {
        "xavier": 2 / (n_in + n_out),
        "kaiming": 2 / n_in,
        "lecun": 1 / n_in,
        "normal": 0.02**2,
        "truncated": stats.truncnorm(-2, 2, scale=0.02).var(),
    }[scheme.split("_")[0]]


def assert_deviation(weight: torch.Tensor, variance: float) -> None:
    """Assert that a sample has this variance within five times the error of sampling."""
    error = math.sqrt(2 / weight.numel())
    assert weight.double().square().mean().item() == pytest.approx(variance, rel=5 * error)


@every_layer
@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s != "orthogonal"])
def test_variances_are_those_of_the_formulas(name: str, scheme: str) -> None:
    build, n_in, n_out = LAYERS[name]
    layer = build()
    initialize_(layer, scheme=scheme, seed=1)
    variance = expected_variance(scheme, n_in, n_out)
    assert_deviation(layer.weight, variance)
    assert not layer.bias.any()
    if scheme.endswith("uniform"):
        bound = math.sqrt(3 * variance)
        assert 0.99 * bound < layer.weight.abs().max().item() <= bound
        assert (
            stats.kstest(layer.weight.detach().flatten(), stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3
        )
    if scheme == "truncated_normal":
        assert layer.weight.abs().max() <= 0.04


@every_layer
def test_fan_out_keeps_the_variance_of_gradients(name: str) -> None:
    build, _, n_out = LAYERS[name]
    layer = build()
    initialize_(layer, fan="out", nonlinearity="linear", seed=2)
    assert_deviation(layer.weight, 1 / n_out)


@pytest.mark.parametrize("name", ["linear", "conv1d", "grouped", "transposed"])
def test_kaiming_keeps_the_variance_of_what_goes_through(name: str) -> None:
    """The fans against the layers themselves: unit inputs give unit outputs, away from the edges."""
    layer = LAYERS[name][0]()
    initialize_(layer, nonlinearity="linear", seed=3)
    shape = {"linear": (64, 300), "conv1d": (4, 32, 60)}.get(name, (4, layer.weight.shape[0], 24, 24))
    if name == "grouped":
        shape = (4, 64, 24, 24)
    out = layer(torch.randn(shape, generator=torch.Generator().manual_seed(4)))
    inside = out[..., 4:-4, 4:-4] if out.ndim == 4 else out
    assert inside.var().item() == pytest.approx(1.0, rel=0.12)


@pytest.mark.parametrize("name", ["linear", "conv1d", "conv2d"])
def test_fans_are_torchs_where_these_are_right(name: str) -> None:
    layer = LAYERS[name][0]()
    assert layer_fans(layer) == nn.init._calculate_fan_in_and_fan_out(layer.weight)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize(("old", "new"), [(8, 16), (16, 8), (32, 128)])
def test_orthogonal_rows_or_columns_in_each_group(kind, old: int, new: int, groups: int) -> None:
    layer = kind(old, new, 2, groups=groups)
    initialize_(layer, scheme="orthogonal", nonlinearity="tanh", seed=1)
    for rows, _ in weight_blocks(layer, "weight"):
        matrix = layer.weight[rows].flatten(1).detach()
        product = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
        torch.testing.assert_close(product, torch.eye(len(product)) * (5 / 3) ** 2, rtol=0, atol=1e-5)


def test_query_key_and_value_have_fans_of_their_own() -> None:
    attention = nn.MultiheadAttention(64, 4)
    initialize_(attention, scheme="xavier_normal", seed=1)
    for block in attention.in_proj_weight.split(64):
        assert_deviation(block, 2 / 128)
    apart = nn.MultiheadAttention(64, 4, kdim=32, vdim=16)
    initialize_(apart, scheme="xavier_normal", seed=1)
    assert_deviation(apart.k_proj_weight, 2 / 96)
    assert_deviation(apart.v_proj_weight, 2 / 80)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM, nn.GRUCell])
def test_each_gate_is_orthogonal(kind) -> None:
    layer = kind(16, 16)
    initialize_(layer, scheme="orthogonal", nonlinearity="linear", bias=1.0, seed=1)
    weights = {name: value for name, value in layer.named_parameters() if "weight" in name}
    gain = 25 / 9 if kind is nn.RNN else 1.0  # of its own tanh
    assert len(weights) == 2
    for weight in weights.values():
        for gate in weight.detach().split(16):
            torch.testing.assert_close(gate @ gate.T, gain * torch.eye(16), rtol=0, atol=1e-5)
    assert all((value == 1).all() for name, value in layer.named_parameters() if "bias" in name)


def test_projection_of_an_lstm() -> None:
    layer = nn.LSTM(40, 60, proj_size=30)
    initialize_(layer, scheme="xavier_normal", seed=1)
    assert_deviation(layer.weight_ih_l0, 2 / 100)
    assert_deviation(layer.weight_hh_l0, 2 / 90)
    assert_deviation(layer.weight_hr_l0, 2 / 90)


def test_embeddings_only_by_normal_schemes_and_padding_stays_zero() -> None:
    net = nn.Sequential(nn.Embedding(500, 40, padding_idx=3), nn.Linear(40, 40))
    before = net[0].weight.detach().clone()
    assert "'0.weight' of Embedding, only the normal schemes" in initialize_(net)
    assert torch.equal(net[0].weight, before)
    initialize_(net, scheme="normal", std=0.5)
    assert not net[0].weight[3].any()
    assert_deviation(net[0].weight[4:], 0.25)


def test_a_tied_weight_is_set_once_and_left_alone_as_an_embedding() -> None:
    net = nn.Sequential(nn.Embedding(50, 40), nn.Linear(40, 50, bias=False))
    net[1].weight = net[0].weight
    assert initialize_(net, scheme="normal").startswith("normal: 1 tensors")
    with pytest.raises(ValueError, match="a scheme is known for, got '\\*': 0.weight is of Embedding"):
        initialize_(net)


@pytest.mark.parametrize("name", ["gelu", "silu", "mish", "elu", "softplus", "hardswish", "relu"])
def test_gains_are_the_integral(name: str) -> None:
    activation = getattr(nn.functional, name)

    def moment(z: float) -> float:
        return activation(torch.tensor(z, dtype=torch.float64)).item() ** 2 * stats.norm.pdf(z)

    second = sum(integrate.quad(moment, low, low + 3)[0] for low in (-9, -6, -3, 0, 3, 6))
    assert named_gain(name) == pytest.approx(1 / math.sqrt(second), rel=1e-6)


def test_gains_are_torchs_where_it_knows_them() -> None:
    for name in ("linear", "sigmoid", "tanh", "leaky_relu", "selu"):
        assert named_gain(name) == nn.init.calculate_gain(name)


def test_the_activation_that_really_follows() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))

    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)),
        nn.LeakyReLU(0.5),
        nn.Flatten(),
        nn.Linear(8, 2),
        nn.Dropout(),
        nn.GELU(),
        nn.Linear(2, 2),
        nn.Linear(2, 2),
        Block(),
    )
    found = {
        name: gain
        for layer, gain in following_gain(net).items()
        for name, m in net.named_modules()
        if m is layer
    }
    assert found == {
        "0.0": ("leakyrelu", pytest.approx(math.sqrt(1.6))),
        "3": ("gelu", named_gain("gelu")),
        "6": ("linear", 1.0),
        "8.part.0": ("tanh", 5 / 3),
    }


@pytest.mark.parametrize(
    ("activation", "wanted"),
    [
        ("relu", ("relu", math.sqrt(2))),
        (nn.functional.silu, ("silu", named_gain("silu"))),
        (nn.Tanh(), ("tanh", 5 / 3)),
        (torch.tanh, ("tanh", 5 / 3)),
        (nn.functional.hardtanh, None),
        (lambda x: x, None),
    ],
)
def test_the_activation_of_torchs_transformer_layers(activation, wanted) -> None:
    for kind in (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer):
        layer = kind(8, 2, 16, activation=activation)
        found = following_gain(nn.ModuleList([layer]))
        assert found == ({} if wanted is None else {layer.linear1: wanted})


@pytest.mark.parametrize(("activation", "grows"), [(nn.ReLU, False), (nn.GELU, True), (nn.SiLU, True)])
@torch.no_grad()
def test_moments_stay_behind_homogeneous_activations_and_grow_behind_others(activation, grows) -> None:
    layers = [layer for _ in range(12) for layer in (nn.Linear(256, 256, bias=False), activation())]
    net = nn.Sequential(*layers)
    initialize_(net, seed=1)
    torch.manual_seed(1)
    x, moments = torch.randn(256, 256), []
    for layer in net:
        x = layer(x)
        moments += [x.square().mean().item()] if isinstance(layer, nn.Linear) else []
    assert (moments[-1] > 2 * moments[0]) == grows
    assert grows or moments[-1] > moments[0] / 2


def test_a_seed_leaves_torchs_generator_alone_and_none_follows_it() -> None:
    results = []
    for seed in (5, 5, None, None):
        torch.manual_seed(1)
        state = torch.get_rng_state()
        net = nn.Linear(4, 4)
        between = torch.get_rng_state()
        initialize_(net, seed=seed)
        assert torch.equal(torch.get_rng_state(), between) == (seed is not None)
        assert not torch.equal(state, between)
        results.append(net.weight.detach())
    assert torch.equal(results[0], results[1]) and torch.equal(results[2], results[3])
    assert not torch.equal(results[1], results[2])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scheme": "zeros"}, "units that start equal get equal gradients"),
        ({"scheme": "kaiming"}, "scheme must be one of .*did you mean 'kaiming_"),
        (
            {"scheme": "lecun_normal", "nonlinearity": "tanh"},
            "nonlinearity must be left out with scheme 'lecun",
        ),
        (
            {"scheme": "xavier_normal", "fan": "out"},
            "fan must be left out with scheme 'xavier_normal', got 'out'",
        ),
        ({"std": 0.1}, "std must be left out with scheme 'kaiming_normal', got 0.1"),
        ({"fan": "both"}, "fan must be one of 'in', 'out', got 'both'"),
        ({"bias": math.inf}, "bias must lie in"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"params": "nothing"}, "params must match a parameter"),
        ({"params": "1"}, "'1': 1.weight is of BatchNorm1d, normalisation starts as torch makes it"),
    ],
)
def test_refusals(settings, words: str) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    before = net[0].weight.detach().clone()
    with pytest.raises(ValueError, match=words):
        initialize_(net, **settings)
    assert torch.equal(net[0].weight, before)


def test_all_zero_is_dead_which_is_why_it_is_refused() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    net(torch.randn(5, 4)).square().add(1).log().sum().backward()
    assert not any(layer.weight.grad.any() for layer in net[::2])


@pytest.mark.parametrize("build", [lambda: nn.LazyLinear(3), lambda: nn.Linear(3, 3, device="meta")])
def test_what_has_no_values_yet_is_refused(build) -> None:
    with pytest.raises(ValueError, match="params must match parameters that can be set, got 'weight'"):
        initialize_(build())
