"""Adaptive gradient clipping: against a slow twin unit by unit, and in runs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_tricks import AdaptiveGradientClip, ConflictError, GradientClip
from lightning_tricks.gradients.adaptive import clip_units_
from lightning_tricks.gradients.units import transposed, unit_norms, units_of
from tests.contract.test_together import reads_per_step
from tests.toys import Loader, Toy, TwoOptimizers, assert_equal, trainer, weights

LAYERS: dict[str, nn.Module] = {
    "linear": nn.Linear(5, 3),
    "convolution": nn.Conv2d(4, 6, (3, 2), groups=2),
    "transposed": nn.ConvTranspose1d(4, 3, 2),
    "transposed, groups": nn.ConvTranspose2d(4, 6, 2, groups=2),
    "embedding": nn.Embedding(7, 3),
    "recurrent": nn.GRU(3, 2),
    "norm": nn.LayerNorm((2, 3)),
    "scale": nn.PReLU(),
}


def units(layer: nn.Module, parameter: nn.Parameter) -> list[Tensor]:
    """Return for each unit of ``parameter`` a mask of its entries, by looking at which output they reach."""
    masks = []
    if parameter.ndim < 2:
        return [torch.ones_like(parameter, dtype=torch.bool)]
    if not isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d):
        for row in range(len(parameter)):
            masks.append(torch.zeros_like(parameter, dtype=torch.bool))
            masks[-1][row] = True
        return masks
    ones = parameter.new_ones(1, layer.in_channels, *[1] * (parameter.ndim - 2))
    for channel in range(layer.out_channels):
        (reached,) = torch.autograd.grad(layer(ones)[0, channel].sum(), parameter)
        masks.append(reached != 0)
    return masks


def slow_agc(layer: nn.Module, clip: float, eps: float) -> dict[str, Tensor]:
    """Return the clipped gradients, unit by unit, as the paper writes it."""
    clipped = {}
    for name, parameter in layer.named_parameters():
        out = parameter.grad.clone()
        for mask in units(layer, parameter):
            w_norm = parameter.detach()[mask].norm().item()
            g_norm = parameter.grad[mask].norm().item()
            if g_norm > 0 and g_norm / max(w_norm, eps) > clip:
                out[mask] = clip * max(w_norm, eps) / g_norm * parameter.grad[mask]
        clipped[name] = out
    return clipped


def filled(layer: nn.Module) -> nn.Module:
    """Give ``layer`` gradients of all sizes, and some weights and gradients of zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        sizes = torch.logspace(-4, 2, parameter.numel()).view(parameter.shape).to(parameter.dtype)
        parameter.grad = sizes * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        if parameter.ndim > 1:
            parameter.data[0], parameter.grad[-1] = 0.0, 0.0
    return layer


@pytest.mark.parametrize("clip", [0.0, 0.01, 1.0, 1e9])
@pytest.mark.parametrize("name", LAYERS)
def test_each_unit_is_cut_to_its_share(name: str, clip: float) -> None:
    layer = filled(LAYERS[name].double())
    expected = slow_agc(layer, clip, 1e-3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    count = 0
    for own, grads, axes, groups in units_of(optimizer, set(layer.parameters()), transposed(layer)):
        count += len(clip_units_(grads, own, axes, clip=clip, eps=1e-3, groups=groups))
    assert count == sum(len(units(layer, parameter)) for parameter in layer.parameters())
    for key, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[key], rtol=1e-12, atol=1e-15)


def test_by_hand() -> None:
    weight, grad = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[0.06, 0.08], [0.6, 0.8]])
    over = clip_units_([grad], [weight], [(0,)], clip=0.01, eps=0.1)
    assert over.tolist() == [True, True]
    torch.testing.assert_close(grad, torch.tensor([[0.03, 0.04], [0.0006, 0.0008]]))


def test_half_precision_and_empty_and_scalar_units() -> None:
    large = torch.full((2, 4), 3e4, dtype=torch.float16)
    assert unit_norms([large], [(0,)]).tolist() == [6e4, 6e4]
    assert unit_norms([large[0], large], [(), ()]).tolist() == pytest.approx([6e4, 6e4 * math.sqrt(2)])
    assert unit_norms([torch.empty(0, 3), torch.empty(2, 0)], [(0,), (0,)]).tolist() == [0.0, 0.0]
    assert unit_norms([torch.tensor(-2.0), torch.empty(0)], [(), ()]).tolist() == [2.0, 0.0]
    clip_units_([large], [torch.ones_like(large)], [(0,)], clip=1.0, eps=1e-3)
    assert large.tolist() == [[1.0] * 4] * 2


class Ratios(Callback):
    """Collects the largest ratio of the norms of gradient and weights over the rows of a layer."""

    def __init__(self, layer: str = "body.0") -> None:
        self.layer = layer
        self.seen: list[float] = []

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        weight = pl_module.get_submodule(self.layer).weight
        if any(weight is p for group in optimizer.param_groups for p in group["params"]):
            ratios = weight.grad.norm(dim=1) / weight.detach().norm(dim=1).clamp(min=1e-3)
            self.seen.append(ratios.max().item())


@pytest.mark.parametrize("module", [Toy, TwoOptimizers])
def test_the_ratios_of_a_run_are_bounded(module: type[Toy]) -> None:
    before, after = Ratios(), Ratios()
    trainer(before, AdaptiveGradientClip(clip="0.1 * linear(to=0.1)"), after).fit(module(), Loader())
    limits = [0.1 * (1.0 - 0.9 * step / 15) for step in range(15)]
    assert after.seen == pytest.approx(
        [min(pair) for pair in zip(before.seen, limits, strict=True)], rel=1e-4
    )
    assert sum(was > limit for was, limit in zip(before.seen, limits, strict=True)) > 5


def test_a_weight_that_starts_at_zero_learns() -> None:
    module = Toy(optimizer="SGD", lr=1.0)
    nn.init.zeros_(module.head.weight)
    trainer(AdaptiveGradientClip(clip=0.1), max_steps=1).fit(module, Loader())
    # By no more, in the first step, than the rate times clip times eps.
    assert module.head.weight.norm(dim=1).tolist() == pytest.approx([1e-4] * 3)


def test_what_is_excluded_is_left_alone() -> None:
    free, bound = Ratios("head"), Ratios("body.0")
    settings = {"params": ("body", "head"), "exclude": ("head", "*.bias")}
    trainer(AdaptiveGradientClip(clip=1e-6, **settings), free, bound).fit(Toy(), Loader())
    assert max(bound.seen) < 1e-5 < min(free.seen)


def test_logs_share_and_threshold() -> None:
    for clip, share in ((0.0, 1.0), (1e9, 0.0)):
        runner = trainer(AdaptiveGradientClip(clip=clip))
        runner.fit(Toy(), Loader())
        metrics = runner.callback_metrics
        # The bias before BatchNorm has a gradient of rounding alone, which may be zero.
        assert metrics["adaptive_gradient_clip/clipped"].item() == pytest.approx(share, abs=0.1)
        assert metrics["adaptive_gradient_clip/threshold"] == pytest.approx(clip)


def test_its_place_is_beside_gradient_clip() -> None:
    trainer(AdaptiveGradientClip(), GradientClip()).fit(Toy(), Loader())
    trainer(GradientClip(), AdaptiveGradientClip()).fit(Toy(), Loader())
    with pytest.raises(ConflictError, match="'unit_clipping' must have one owner"):
        trainer(*(AdaptiveGradientClip(label=label) for label in "ab")).fit(Toy(), Loader())


@pytest.mark.parametrize("first", [True, False])
def test_gradients_that_are_not_finite_are_still_found_beside_it(first: bool) -> None:
    class Poison(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, _: Any) -> None:
            pl_module.head.weight.grad[0, 0] = math.inf

    clip = GradientClip()
    both = [AdaptiveGradientClip(), clip] if first else [clip, AdaptiveGradientClip()]
    module = Toy()
    before = weights(module.head)
    trainer(Poison(), *both, max_epochs=1).fit(module, Loader())
    assert clip.outcome()["skipped"] == 5
    assert_equal(weights(module.head), before)


@pytest.mark.parametrize("fused", [False, True])
def test_nothing_is_read_back_to_the_host(fused: bool) -> None:
    assert reads_per_step(AdaptiveGradientClip(), fused=fused) == reads_per_step(fused=fused)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"clip": -0.1}, r"clip must lie in \[0.0, inf\], got -0.1"),
        ({"eps": 0.0}, r"eps must lie in \(0.0, 1.0\], got 0.0"),
        ({"exclude": ""}, "exclude must not hold an empty pattern"),
        ({"params": ()}, "params must name at least one pattern"),
    ],
)
def test_bad_settings_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        AdaptiveGradientClip(**bad)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exclude": "haed"}, "exclude must match a parameter, got 'haed'.*'head'"),
        (
            {"params": "head", "exclude": "head"},
            "exclude must leave a parameter that params matches, got 'head'",
        ),
    ],
)
def test_what_matches_nothing_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(AdaptiveGradientClip(**settings)).fit(Toy(), Loader())
