"""Parameters that only the module holds, or only the optimizer, and optimizers that climb."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_tricks import GradientClip, GradientSurgery, SharpnessAware
from lightning_tricks.gradients.norms import within
from tests.toys import trainer


class Small(LightningModule):
    """Two layers of which ``held`` are the optimizer's, with two losses that pull against each other."""

    def __init__(self, *, held: str = "", **options: Any) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body, self.head = nn.Linear(4, 6).double(), nn.Linear(6, 3).double()
        self.held, self.options = held, options

    def losses(self, batch: Tensor) -> dict[str, Tensor]:
        out = self.head(torch.tanh(self.body(batch)))
        first = nn.functional.cross_entropy(out, torch.arange(len(batch)) % 3)
        return {"a": first, "b": 0.3 * out.square().mean() - 0.9 * first}

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        losses = self.losses(batch)
        return {"loss": sum(losses.values()), "losses": losses}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD((self.head if self.held else self).parameters(), lr=0.1, **self.options)


def batches(count: int = 10) -> list[Tensor]:
    return list(torch.randn(count, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))


def test_surgery_takes_the_gradients_of_what_is_stepped_alone() -> None:
    module, twin = Small(held="head"), Small(held="head")
    trainer(GradientSurgery(), max_epochs=1).fit(
        module, torch.utils.data.DataLoader(batches(), batch_size=None)
    )
    held = [*twin.head.parameters()]
    for batch in batches():
        a, b = (torch.autograd.grad(loss, held, retain_graph=True) for loss in twin.losses(batch).values())
        dot = sum((x * y).sum() for x, y in zip(a, b, strict=True))
        aa, bb = (sum(x.square().sum() for x in each) for each in (a, b))
        with torch.no_grad():
            for p, x, y in zip(held, a, b, strict=True):
                against = min(dot, torch.tensor(0.0))
                p -= 0.1 * (x - against / bb * y + y - against / aa * x)
    for p, q in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("adaptive", [False, True])
def test_sharpness_of_what_is_maximized_is_that_of_its_negative(adaptive: bool) -> None:
    class Negative(Small):
        def losses(self, batch: Tensor) -> dict[str, Tensor]:
            return {name: -loss for name, loss in super().losses(batch).items()}

    modules = Small(), Negative(maximize=True)
    for module in modules:
        runner = trainer(SharpnessAware(rho=0.3, adaptive=adaptive), max_epochs=1)
        runner.fit(module, torch.utils.data.DataLoader(batches(), batch_size=None))
    for p, q in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("params", ["*", ("*",)])
def test_clipping_all_clips_what_the_optimizer_alone_holds(params: Any) -> None:
    class Loose(Small):
        def __init__(self) -> None:
            super().__init__()
            self.loose = [nn.Parameter(torch.tensor(5.0, dtype=torch.float64))]

        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx)["loss"] + self.loose[0].square()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([*self.parameters(), *self.loose], lr=0.1)

    ours, theirs = Loose(), Loose()
    data = torch.utils.data.DataLoader(batches(), batch_size=None)
    trainer(GradientClip(max_norm=0.3, params=params), max_epochs=1).fit(ours, data)
    trainer(max_epochs=1, gradient_clip_val=0.3).fit(theirs, data)
    assert torch.equal(ours.loose[0], theirs.loose[0])
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_where_rounding_makes_torchs_factor_less_than_one_clipping_is_work() -> None:
    norm, limit = 5.319040141671394e-08, 1.0531904546071153e-06
    assert torch.clamp(limit / (torch.tensor(norm) + 1e-6), max=1.0) < 1.0
    assert not within(norm, limit)
    wide = torch.tensor(99.0, dtype=torch.bfloat16)
    assert torch.clamp(99.05 / (wide + 1e-6), max=1.0) < 1.0
    assert not within(wide.item(), 99.05, wide.dtype)
