"""The health of layers: by hand, against NumPy, and on networks with known illnesses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_tricks.reporting.health import (
    LayerHealth,
    Part,
    ailments,
    layer_sums,
    layers_health,
    overall,
    update_squares,
)

WELL = {"exploding": [], "vanishing": [], "dead": [], "symmetric": []}


def health_of(network: nn.Sequential, loss: Tensor, rate: float = 0.1) -> dict[str, LayerHealth]:
    """Return the health of the layers of ``network`` in a step of plain gradient descent on ``loss``."""
    loss.backward()
    layers = [(name, layer) for name, layer in network.named_children() if list(layer.parameters())]
    parts = [
        Part(index, parameter.detach(), parameter.grad, (), 0)
        for index, (_, layer) in enumerate(layers)
        for parameter in layer.parameters()
    ]
    sums = layer_sums(parts, len(layers))
    before = [part.weight.clone() for part in parts]
    with torch.no_grad():
        for part in parts:
            part.weight.sub_(part.gradient if part.gradient is not None else 0.0, alpha=rate)
    found = layers_health(sums, update_squares(parts, before, len(layers)))
    return {name: each for (name, _), each in zip(layers, found, strict=True)}


def found(network: nn.Sequential, width: int = 6) -> dict[str, list[str]]:
    inputs = torch.randn(16, width, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(16) % 3
    health = health_of(network, nn.functional.cross_entropy(network(inputs), targets))
    return ailments(health, exploding=100.0, vanishing=1e-6)


def mlp(depth: int, activation: type[nn.Module], width: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    hidden = [part for _ in range(depth) for part in (nn.Linear(width, width), activation())]
    return nn.Sequential(*hidden, nn.Linear(width, 3))


def test_numbers_are_those_of_numpy() -> None:
    network = mlp(1, nn.Tanh)
    health = health_of(network, network(torch.randn(5, 6)).square().mean(), rate=0.5)
    for name, layer in network.named_children():
        if name == "1":
            continue
        grads = np.concatenate([p.grad.numpy().ravel() for p in layer.parameters() if p.grad is not None])
        after = np.concatenate([p.detach().numpy().ravel() for p in layer.parameters()])
        before = after + 0.5 * grads
        assert health[name].gradient_norm == pytest.approx(np.linalg.norm(grads), rel=1e-5)
        assert health[name].gradient_to_weight == pytest.approx(
            np.linalg.norm(grads) / np.linalg.norm(before), rel=1e-5
        )
        assert health[name].update_to_weight == pytest.approx(
            0.5 * np.linalg.norm(grads) / np.linalg.norm(before), rel=1e-5
        )
        assert health[name].rms == pytest.approx(np.sqrt(np.mean(grads**2)), rel=1e-5)


def test_shares_by_hand() -> None:
    gradient = torch.tensor([[0.0, 1.0], [math.nan, 0.0]])
    whole = Part(0, torch.ones(2, 2), gradient, (), 0)
    missing = Part(1, torch.ones(3), None, (), 0)
    empty = Part(2, torch.zeros(0), torch.zeros(0), (), None)
    sums = layer_sums([whole, missing, empty], 3)
    first, second, third = layers_health(sums, torch.zeros(3, 1))
    assert (first.zero, first.non_finite, first.symmetric) == (0.5, 0.25, False)
    assert math.isnan(first.gradient_norm)
    assert (second.zero, second.gradient_norm) == (1.0, 0.0)
    assert (third.zero, third.gradient_to_weight) == (0.0, math.inf)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_other_types(kind: torch.dtype) -> None:
    gradient = torch.full((2, 3), 2.0).to(kind)
    (health,) = layers_health(layer_sums([Part(0, gradient, gradient, (), 0)], 1), torch.zeros(1, 1))
    assert health.gradient_norm == pytest.approx(math.sqrt(24.0))
    assert health.symmetric


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid])
def test_usual_networks_are_well(activation: type[nn.Module]) -> None:
    assert found(mlp(3, activation)) == WELL


def test_a_deep_network_of_sigmoids_vanishes_towards_its_input() -> None:
    ill = found(mlp(30, nn.Sigmoid))
    assert ill["vanishing"][:3] == ["0", "2", "4"]
    assert "60" not in ill["vanishing"]
    assert ill["dead"] == ill["exploding"] == ill["symmetric"] == []


def test_a_deep_network_with_large_weights_explodes() -> None:
    network = mlp(12, nn.Identity)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=2.0)
    assert found(network)["exploding"]


def test_a_layer_behind_which_no_unit_answers_is_dead() -> None:
    network = mlp(3, nn.ReLU)
    nn.init.constant_(network[2].bias, -100.0)  # type: ignore[arg-type]
    ill = found(network)
    assert ill["dead"] == ["0", "2"] or ill["dead"] == ["0", "2", "4"]


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_a_network_of_equal_weights_is_symmetric(value: float) -> None:
    network = mlp(2, nn.Tanh)
    for parameter in network[:4].parameters():
        nn.init.constant_(parameter, value)
    assert "0" in found(network)["symmetric"]
    assert "2" not in found(mlp(2, nn.Tanh))["symmetric"]


def test_a_head_of_zeros_is_not_symmetric() -> None:
    network = mlp(2, nn.Tanh)
    nn.init.zeros_(network[4].weight)  # type: ignore[arg-type]
    assert found(network)["symmetric"] == []


def test_equal_rows_among_others_do_not_count() -> None:
    weight = torch.tensor([[1.0, 2.0], [1.0, 2.0], [3.0, 4.0]])
    (health,) = layers_health(layer_sums([Part(0, weight, weight, (), 0)], 1), torch.zeros(1, 1))
    assert not health.symmetric


def test_together() -> None:
    one = LayerHealth(3.0, 1.0, 0.1, zero=0.5, non_finite=0.0, rms=1.0, symmetric=False)
    other = one._replace(gradient_norm=4.0, update_to_weight=0.3, zero=0.25)
    assert overall([one, other]) == {
        "gradient_norm": 5.0,
        "update_to_weight": pytest.approx(0.2),
        "zero": 0.5,
        "non_finite": 0.0,
    }


def test_units_of_a_transposed_convolution_lie_along_its_second_axis() -> None:
    weight = torch.arange(4.0)[:, None].expand(4, 3).clone()
    for units, symmetric in ((1, True), (0, False), (None, False)):
        sums = layer_sums([Part(0, weight, weight, (), units)], 1)
        assert layers_health(sums, torch.zeros(1, 1))[0].symmetric is symmetric


def test_tiny_gradients_are_not_taken_for_none() -> None:
    tiny = torch.full((4,), 1e-30)
    (health,) = layers_health(layer_sums([Part(0, tiny, tiny, (), 0)], 1), torch.zeros(1, 1))
    assert health.gradient_norm == pytest.approx(2e-30)
    assert ailments({"a": health}, exploding=1.0, vanishing=0.1) == WELL
