"""Networks whose units come into another order compute the same function, and are brought back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_tricks.fusion.permutation_spec import permutation_spec
from lightning_tricks.fusion.permutations import permuted, places
from lightning_tricks.fusion.weight_matching import weight_matching
from lightning_tricks.recipes.digits import DigitsClassifier
from lightning_tricks.recipes.residual import ResidualNet

IMAGES = (3, 1, 8, 8)


class Dense(nn.Module):
    """Joins what it has made to what it makes, gates channels, and has a layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(7)
        self.gate, self.mix = nn.Conv2d(7, 7, 1), nn.Conv2d(7, 7, 1, bias=False)
        self.head = nn.Linear(7 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x))
        x = self.norm(torch.cat([x, self.two(x)], dim=1))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        x = self.mix(self.mix(x).relu_())
        return self.head(F.max_pool2d(x, 2).view(x.size(0), -1))


class Tied(nn.Module):
    """An autoencoder whose layers share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.back = nn.Linear(6, 6, bias=False)
        self.back.weight = self.down.weight
        self.out = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.back(self.down(self.up(x.flatten(1)).tanh()).tanh()) + 1)


class Compiled(nn.Module):
    """Holds a module as ``torch.compile`` does, and cannot be traced either."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module

    def forward(self, x: Tensor) -> Tensor:
        assert type(x) is Tensor
        return self._orig_mod(x)


def plain() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.PReLU(8), nn.ZeroPad2d(1)),
        *(nn.Conv2d(8, 16, 3, groups=8), nn.GroupNorm(1, 16), nn.ConvTranspose2d(16, 6, 2), nn.MaxPool2d(2)),
        *(nn.LayerNorm((6, 3, 3)), nn.Flatten(), nn.Dropout(), nn.Linear(54, 20), nn.BatchNorm1d(20)),
        *(nn.GELU(), nn.LayerNorm(20), nn.Linear(20, 3)),
    )


NETWORKS = {
    "Sequential": (plain, 3),
    "projection": (lambda: ResidualNet(widths=(4, 6, 12), blocks=2), 9),
    "padding": (lambda: ResidualNet(widths=(4, 6, 12), blocks=2, shortcut="padding"), 9),
    "LightningModule": (lambda: DigitsClassifier(ResidualNet(widths=(4,))), 2),
    "compiled": (
        lambda: nn.Sequential(Compiled(nn.Conv2d(1, 4, 3)), nn.Flatten(), nn.Linear(144, 2)),
        1,
    ),
    "joined": (Dense, 2),
    "tied": (Tied, 1),
}


def drawn(network: nn.Module) -> nn.Module:
    """Return ``network`` in double precision, with numbers of which no two are the same."""
    network = network.double().eval()
    generator = torch.Generator().manual_seed(0)
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) + 0.2 * (value.ndim == 1))
    return network


@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_permuted_network_is_the_same_function_and_is_brought_back(name: str) -> None:
    build, count = NETWORKS[name]
    network = drawn(build())
    state = {key: value.clone() for key, value in network.state_dict().items()}
    spec, generator = permutation_spec(network), torch.Generator().manual_seed(1)
    units = {key: found[0].units for key, found in places(spec, state).items()}
    assert len(units) == count
    other = permuted(state, spec, {n: torch.randperm(k, generator=generator) for n, k in units.items()})
    images = torch.rand(IMAGES, generator=generator, dtype=torch.double)
    before = _output(network, images)
    network.load_state_dict(other)
    torch.testing.assert_close(_output(network, images), before, rtol=1e-12, atol=1e-12)
    changed = [key for key, value in state.items() if not torch.equal(value, other[key])]
    assert len(changed) > len(state) / 2
    back = permuted(other, spec, weight_matching(spec, state, other))
    assert all(torch.equal(value, back[key]) for key, value in state.items())


def _output(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = network(images)
    return found


def test_padded_channels_bind_the_order_of_a_residual_stream() -> None:
    spec = permutation_spec(ResidualNet(widths=(4, 6), shortcut="padding"))
    assert spec["stem.0.weight"] == ("stem.0", None, None, None)
    assert spec["groups.1.0.second.0.weight"] == (("stem.0", "padding"), "groups.1.0.first.0", None, None)
    assert spec["head.weight"] == (None, ("stem.0", "padding")) and spec["head.bias"] == (None,)


def test_units_that_meet_the_input_or_the_output_stay() -> None:
    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.layers[0](x)
            return x + self.layers[2](torch.relu(self.layers[1](x)))

    assert {key: axes for key, axes in permutation_spec(Skipping()).items() if "weight" in key} == {
        "layers.0.weight": (None, None),
        "layers.1.weight": ("layers.1", None),
        "layers.2.weight": (None, "layers.1"),
    }


def test_units_beside_fixed_ones_and_parts_of_fixed_ones_stay_too() -> None:
    class Joining(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = ((2, 2), (2, 3), (5, 4), (4, 1), (4, 1), (4, 6), (6, 2), (2, 2))
            self.layers = nn.ModuleList(nn.Conv2d(*size, 1, bias=False) for size in sizes)

        def forward(self, x: Tensor) -> Tensor:
            stays = self.layers[0](x) + x
            wide = self.layers[2](torch.cat([stays, self.layers[1](x)], 1))
            parts = torch.cat([self.layers[3](wide), self.layers[4](wide)], 1)
            return self.layers[6](self.layers[5](wide)) + self.layers[7](stays + parts)

    rows = [axes[:2] for axes in permutation_spec(Joining()).values() if axes is not None]
    two, five = "layers.2", "layers.5"
    stay = (None, None)
    assert rows == [stay, stay, (two, None), (None, two), (None, two), (five, two), (None, five), stay]


class Calls(nn.Module):
    """Two layers with something between."""

    def __init__(self, between, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.inner, self.between = inner, between
        self.first, self.last = nn.Conv2d(1, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self, self.first(x)))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoderLayer(8, 2)),
            r"units in 1, TransformerEncoderLayer is not known \(no rule for it\): give a spec of which",
        ),
        (
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4)),
            "in 1, GroupNorm is not known .its groups hold",
        ),
        (
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2)),
            "in 1, Conv2d is not .* its groups|its gr",
        ),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.PixelShuffle(2)), "in 1, PixelShuffle is not known"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Linear(6, 2)), "it acts on another axis than that of units"),
        (nn.Sequential(nn.Linear(4, 8), nn.GLU(), nn.Linear(4, 2)), "in 1, GLU is not known"),
        (nn.Sequential(nn.Linear(4, 4), nn.MaxPool1d(2), nn.Linear(2, 2)), "it is not over pixels alone"),
        (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))), "its weight is parametrized"),
        (nn.Linear(3, 2), "spec of Linear must name at least one permutation, got"),
        (
            Calls(lambda net, x: x.mean(1)),
            "what becomes of units in mean, at mean is not .* over pixels alone",
        ),
        (Calls(lambda net, x: x[:, :2].mean((2, 3))), "getitem is not known .it takes some of the units"),
        (Calls(lambda net, x: x.transpose(1, 3)), "units in transpose, at transpose is not known .no rule"),
        (Calls(lambda net, x: torch.cat([x.flatten(1), x.mean((2, 3))], 1)), "it joins something else than"),
        (Calls(lambda net, x: x if x.sum() > 0 else -x), "forward of Calls cannot be traced"),
        (
            Calls(lambda net, x: x.mean((2, 3)), inner=nn.Linear(2, 2)),
            "forward must use every weight, but not 'inner.weight', 'inner.bias': give a spec",
        ),
    ],
)
def test_what_is_not_known_is_refused_by_name(network: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        permutation_spec(network)
