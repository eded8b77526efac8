"""What holds for every reference model: shapes, gradients, determinism, copies, sizes, refusals."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_tricks.recipes.character_net import CharacterNet
from lightning_tricks.recipes.gan_pair import Critic, Generator
from lightning_tricks.recipes.hybrid import HybridNet
from lightning_tricks.recipes.residual import ResidualNet


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    shape: tuple[int, ...]
    parameters: int


def images(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.rand(*shape)


def characters() -> Tensor:
    return torch.randint(5, (3, 6))


# A block of width 4 has in_proj 60, out_proj 20, mlp 80 + 68 and two norms of 8: 244; RMSNorm has 4, no bias.
_TEXT = {"length": 7, "width": 4, "blocks": 2, "heads": 2}
_HYBRID = {"classes": 3, "width": 4, "blocks": 1, "heads": 2}
CASES = {
    "residual": Case(lambda: ResidualNet(classes=5, widths=(2, 3)), images(3, 1, 8, 8), (3, 5), 275),
    "characters": Case(lambda: CharacterNet(5, **_TEXT), characters, (3, 6, 5), 20 + 28 + 2 * 244 + 8),
    "characters, untied": Case(
        lambda: CharacterNet(5, **_TEXT, tied=False), characters, (3, 6, 5), 20 + 28 + 2 * 244 + 8 + 20
    ),
    "characters, rms": Case(
        lambda: CharacterNet(5, **_TEXT, norm="rms"), characters, (3, 6, 5), 20 + 28 + 2 * 236 + 4
    ),
    # stem 36 + 8 + 144 + 8
    "hybrid": Case(lambda: HybridNet(**_HYBRID), images(3, 1, 8, 8), (3, 3), 196 + 16 * 4 + 244 + 8 + 15),
    "hybrid, colours": Case(
        lambda: HybridNet(**_HYBRID, channels=3, size=4, norm="rms"),
        images(3, 3, 4, 4),
        (3, 3),
        268 + 4 * 4 + 236 + 4 + 15,
    ),
    # linear 48; 4 -> 2 channels 296 + 4, 2 -> 1 76 + 2; head 10
    "generator": Case(lambda: Generator(latent=2, width=1), images(3, 2), (3, 1, 8, 8), 48 + 300 + 78 + 10),
    "generator, transposed": Case(
        lambda: Generator(latent=2, width=1, upsampling="transposed"),
        images(3, 2),
        (3, 1, 8, 8),
        48 + 134 + 35 + 10,
    ),
    "critic": Case(lambda: Critic(width=1), images(3, 1, 8, 8), (3,), 17 + 34 + 9),
}


def built(case: Case, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return case.build()


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def test_shapes_and_sizes(case):
    model = built(case)
    assert model(case.inputs()).shape == case.shape
    assert sum(p.numel() for p in model.parameters()) == case.parameters


def test_each_parameter_gets_a_gradient(case):
    model = built(case)
    outputs = model(case.inputs())
    (outputs * torch.randn_like(outputs)).sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # In a place's own softmax a shift of all keys cancels: of the key's bias torch leaves rounding, or 0.
    assert [name for name in silent if "in_proj.bias" not in name] == []


def test_a_seed_gives_the_same_weights_and_another_others(case):
    first, second, other = (built(case, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


@pytest.mark.parametrize("through", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_the_model(case, through):
    model, inputs = built(case).eval(), case.inputs()
    twin = through(model)
    assert [name for name, _ in twin.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert torch.equal(twin(inputs), model(inputs))


def test_weights_of_another_model_make_it_that_model(case):
    model, other, inputs = built(case).eval(), built(case, 1).eval(), case.inputs()
    assert not torch.equal(model(inputs), other(inputs))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(inputs), other(inputs))


def test_samples_do_not_touch_one_another_in_evaluation(case):
    model, inputs = built(case).eval(), case.inputs()
    torch.testing.assert_close(model(inputs)[1:2], model(inputs[1:2]))


@pytest.mark.parametrize(
    ("build", "settings", "message"),
    [
        (ResidualNet, {"classes": 0}, "classes must be at least 1, got 0"),
        (ResidualNet, {"widths": (4, 0)}, "each of widths must be at least 1, got 0"),
        (CharacterNet, {"characters": 1}, "characters must be at least 2, got 1"),
        (CharacterNet, {"characters": 5, "length": 0}, "length must be at least 1, got 0"),
        (
            CharacterNet,
            {"characters": 5, "width": 6, "heads": 4},
            "width must be a multiple of heads, 4, got 6",
        ),
        (CharacterNet, {"characters": 5, "norm": "batch"}, "norm must be one of 'layer', 'rms', got 'batch'"),
        (CharacterNet, {"characters": 5, "blocks": 0}, "blocks must be at least 1, got 0"),
        (CharacterNet, {"characters": 5, "dropout": 1.0}, r"dropout must lie in \[0.0, 1.0\), got 1.0"),
        (HybridNet, {"size": 7}, "size must be even, got 7"),
        (HybridNet, {"channels": 0}, "channels must be at least 1, got 0"),
        (HybridNet, {"norm": "rsm"}, "did you mean 'rms'"),
        (Generator, {"law": "uniform"}, "law must be one of 'gaussian', 'sphere', got 'uniform'"),
        (Generator, {"upsampling": "shufle"}, "did you mean 'shuffle'"),
        (Generator, {"latent": 0}, "latent must be at least 1, got 0"),
        (Critic, {"width": 0}, "width must be at least 1, got 0"),
    ],
)
def test_wrong_settings_are_refused(build: Callable[..., Any], settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)
