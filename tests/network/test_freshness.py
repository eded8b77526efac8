"""Weights as torch makes them pass, whatever the layer, type and seed; others do not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lightning_tricks.network.freshness import looks_fresh

LAYERS = {
    "linear": lambda: nn.Linear(20, 30),
    "one": lambda: nn.Linear(1, 1),
    "conv": lambda: nn.Conv2d(8, 8, 3, groups=2),
    "transposed": lambda: nn.ConvTranspose1d(12, 24, 5, stride=2, groups=3),
    "attention": lambda: nn.MultiheadAttention(16, 2),
    "attention over others": lambda: nn.MultiheadAttention(32, 2, kdim=16, vdim=8),
    "recurrent": lambda: nn.LSTM(16, 32, proj_size=8),
    "cell": lambda: nn.GRUCell(16, 16),
    "embedding": lambda: nn.Embedding(300, 16, padding_idx=2),
    "batchnorm": lambda: nn.BatchNorm2d(8),
    "layernorm": lambda: nn.LayerNorm(8),
    "large": lambda: nn.Linear(700, 700),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def fresh(module: nn.Module) -> dict[str, bool]:
    return {
        f"{path}.{key}": looks_fresh(layer, key, value)
        for path, layer in module.named_modules()
        for key, value in layer._parameters.items()
        if value is not None
    }


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_what_torch_makes_is_fresh(name: str, dtype: torch.dtype) -> None:
    for seed in range(2 if name == "large" else 20):
        torch.manual_seed(seed)
        assert all(fresh(LAYERS[name]().to(dtype)).values())


@every_layer
@pytest.mark.parametrize("factor", [0.0, 0.5, 1.5])
def test_other_scales_and_zeros_are_not(name: str, factor: float) -> None:
    torch.manual_seed(1)
    layer = LAYERS[name]()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(factor)
    if name == "one" and factor == 0.5:
        return  # what one number is drawn from, nobody can tell
    weights = [value for key, value in fresh(layer).items() if "weight" in key]
    assert not any(weights) or (name == "one" and factor == 1.5)


@pytest.mark.parametrize("name", ["linear", "conv", "attention", "recurrent"])
def test_trained_weights_are_not(name: str) -> None:
    torch.manual_seed(1)
    layer = LAYERS[name]()
    trained = copy.deepcopy(layer)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=0.02)
    for _ in range(20):
        for parameter in trained.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    assert not any(value for key, value in fresh(trained).items() if "weight" in key)


def test_another_distribution_of_the_same_deviation_is_not() -> None:
    layer = nn.Linear(64, 64)
    values = torch.randn(64, 64).clamp(-1.7, 1.7) * layer.weight.std().item()
    assert values.abs().max() < 64**-0.5
    assert not looks_fresh(layer, "weight", values)


def test_a_normalisation_that_saw_data_is_not() -> None:
    layer = nn.BatchNorm1d(4)
    layer(torch.randn(8, 4))
    assert not any(fresh(layer).values())
