"""Sharpness-aware minimization: the papers' algorithms in a run, and a second pass that leaves nothing."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric

from lightning_tricks import ConflictError, GradientClip, GradientSurgery, SharpnessAware
from lightning_tricks.updates.sharpness import climb_
from tests.contract.test_together import reads_per_step
from tests.toys import BATCHES, Loader, Logged, Toy, assert_equal, scaler_plugin, trainer, weights


class Smooth(LightningModule):
    """In double precision, with nothing random."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return loss_of(self.net, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def loss_of(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return cross_entropy(net(batch[0].double()), batch[1])


def twin(epochs: int, rho: float, *, adaptive: bool, accumulate: int = 1, limit: float | None = None) -> Any:
    """Return weights, first norms and sharpness of the papers' algorithms, written in their notation."""
    net = Smooth().net
    w = list(net.parameters())
    v = [torch.zeros_like(p) for p in w]
    norms, gaps, loader = [], [], Loader()
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        batches = list(loader)
        for start in range(0, len(batches), accumulate):
            window = batches[start : start + accumulate]
            g, loss = gradient(net, window, accumulate)
            t_w = [p.detach().abs() + 0.01 if adaptive else torch.ones_like(p) for p in w]
            norm = sum(((t * x) ** 2).sum() for t, x in zip(t_w, g, strict=True)).sqrt()
            e = [rho * t**2 * x / norm for t, x in zip(t_w, g, strict=True)]
            before = [p.detach().clone() for p in w]
            with torch.no_grad():
                for p, x in zip(w, e, strict=True):
                    p += x
            g, loss_up = gradient(net, window, accumulate)
            if limit is not None:
                size = sum((x**2).sum() for x in g).sqrt()
                g = [x * min(1.0, limit / (float(size) + 1e-6)) for x in g]
            with torch.no_grad():
                for p, old, m, x in zip(w, before, v, g, strict=True):
                    m.mul_(0.9).add_(x)
                    p.copy_(old - 0.1 * m)
            norms.append(float(norm))
            gaps.append(float(loss_up - loss))
    return [p.detach() for p in w], norms, gaps


def gradient(net: nn.Module, batches: list[Any], count: int) -> tuple[list[Tensor], Tensor]:
    loss = sum(loss_of(net, batch) for batch in batches) / count
    return list(torch.autograd.grad(loss, list(net.parameters()))), loss.detach()


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_weights_are_those_of_the_papers_algorithm(adaptive: bool, accumulate: int) -> None:
    module, logged = Smooth(), Logged("sharpness_aware")
    sam = SharpnessAware(rho=0.3, adaptive=adaptive)
    trainer(sam, logged, max_epochs=8, accumulate_grad_batches=accumulate).fit(module, Loader())
    expected, norms, gaps = twin(8, 0.3, adaptive=adaptive, accumulate=accumulate)
    assert len(norms) == {1: 40, 2: 24}[accumulate]  # the last batch of an epoch steps alone
    for got, wanted in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(got.detach(), wanted, rtol=0, atol=1e-12)
    if accumulate == 1:
        assert logged.column("norm") == pytest.approx(norms, rel=1e-6)
        assert logged.column("sharpness") == pytest.approx(gaps, abs=1e-6)


def test_clipping_acts_on_the_second_gradient_only() -> None:
    module = Smooth()
    trainer(GradientClip(max_norm=0.2), SharpnessAware(rho=0.3), max_epochs=4).fit(module, Loader())
    expected, norms, _ = twin(4, 0.3, adaptive=False, limit=0.2)
    assert min(norms) > 0.2
    for got, wanted in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(got.detach(), wanted, rtol=0, atol=1e-12)


class Held(Smooth):
    """Looks, in each second pass, at what is left of the gradients of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left = list[weakref.ref[Tensor]](), list[int]()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.left += [sum(gradient() is not None for gradient in self.first)] if self.first else []
        return super().training_step(batch, batch_idx)

    def on_after_backward(self) -> None:
        self.first = [] if self.first else [weakref.ref(p.grad) for p in self.parameters()]


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_second_pass_finds_the_memory_of_the_first_gradients_free(adaptive: bool) -> None:
    module = Held()
    trainer(SharpnessAware(rho=0.3, adaptive=adaptive), max_epochs=1).fit(module, Loader())
    assert module.left == [0] * BATCHES


class Counting(Toy):
    """Logs and counts in every way there is; draws dropout masks from the stream of the run."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.mean, self.seen = MeanMetric(), set()
        self.register_buffer("calls", torch.zeros(()))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.mean(loss)
        self.calls = self.calls + 1
        if (self.current_epoch, batch_idx) in self.seen:
            torch.rand(3)  # as where how much is drawn depends on the weights
        self.seen.add((self.current_epoch, batch_idx))
        self.log("metric", self.mean, on_epoch=True)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss


class Hooks(Callback):
    cleared = 0

    def on_before_zero_grad(self, *_: Any) -> None:
        self.cleared += 1


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_second_pass_leaves_nothing_but_gradients(accumulate: int, tmp_path: Path) -> None:
    found = []
    for techniques in ([], [SharpnessAware(rho=0.5)]):
        torch.manual_seed(7)
        module, hooks = Counting(lr=0.0, optimizer="SGD"), Hooks()
        runner = trainer(
            *techniques, hooks, accumulate_grad_batches=accumulate, logger=CSVLogger(tmp_path), max_epochs=2
        )
        runner.fit(module, Loader())
        shown = {k: v for k, v in runner.callback_metrics.items() if "sharpness" not in k}
        found.append([weights(module), shown, torch.get_rng_state(), hooks.cleared])
    assert_equal(*found)
    assert found[0][0]["calls"] == 2 * BATCHES


def test_both_passes_see_one_dropout_mask() -> None:
    logged = Logged("sharpness_aware")
    trainer(SharpnessAware(rho=1e-6), logged).fit(Counting(), Loader())
    assert len(logged.rows) == 3 * BATCHES
    assert max(map(abs, logged.column("sharpness"))) < 1e-5


def test_nothing_moves_where_the_norm_is_not_finite() -> None:
    for bad in (torch.inf, torch.nan):
        weight = torch.tensor([1.0, 2.0])
        climb_([weight], [torch.tensor([bad, 1.0])], torch.tensor(bad), rho=0.5)
        assert weight.tolist() == [1.0, 2.0]
    weight = torch.tensor([1.0])
    climb_([weight], [torch.zeros(1)], torch.tensor(0.0), rho=0.5)
    assert weight.item() == 1.0


class Steps(Callback):
    """Notes the weights after each batch."""

    def __init__(self) -> None:
        self.after: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.after.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_skips_steps_that_overflow_and_trains_after_them(fused: bool) -> None:
    module, steps, logged = Toy(fused=fused), Steps(), Logged("sharpness_aware")
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    plugins = [scaler_plugin(init_scale=2.0**40)]
    runner = trainer(SharpnessAware(rho=0.5), steps, logged, plugins=plugins, max_epochs=8)
    runner.fit(module, Loader())
    assert_equal(steps.after[0], start)
    assert all(torch.isfinite(p).all() for p in module.parameters())
    with pytest.raises(AssertionError):
        assert_equal(steps.after[-1], start)
    assert 0.01 < logged.column("norm")[-1] < 10.0  # without the scale


class Breaks(Toy):
    """Fails the second time that it sees a batch."""

    seen = 0

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        self.seen += 1
        if self.seen == 4:
            assert not torch.equal(self.head.weight, self.before)
            raise RuntimeError("broken")
        self.before = self.head.weight.detach().clone()
        return super().training_step(batch, batch_idx)


def test_weights_and_statistics_are_put_back_if_the_second_pass_breaks_off() -> None:
    module, steps = Breaks(), Steps()
    with pytest.raises(RuntimeError, match="broken"):
        trainer(SharpnessAware(rho=0.5), steps).fit(module, Loader())
    assert_equal({name: p.detach() for name, p in module.named_parameters()}, steps.after[-1])
    assert module.body[1].num_batches_tracked == 2


def test_it_reads_nothing_back() -> None:
    plain = reads_per_step(fused=True)
    assert reads_per_step(SharpnessAware(rho="0.5 * linear(to=0.1)", adaptive=True), fused=True) == plain


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rho": -0.1}, "rho must lie in"),
        ({"rho": float("inf")}, "rho must lie in"),
        ({"rho": "cosine(to=-1)"}, "every value of rho must lie in"),
        ({"adaptive": 1}, "adaptive must be True or False, got 1"),
    ],
)
def test_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        SharpnessAware(**settings)


def test_lbfgs_and_a_second_owner_of_the_passes_are_refused() -> None:
    with pytest.raises(ValueError, match="SharpnessAware needs .* got LBFGS"):
        trainer(SharpnessAware()).fit(Toy(optimizer="LBFGS"), Loader())
    with pytest.raises(ConflictError, match="'passes' must have one owner"):
        trainer(GradientSurgery(), SharpnessAware()).fit(Toy(), Loader())


def test_batches_that_give_no_loss_up_there_have_no_sharpness() -> None:
    class Skips(Toy):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.calls = getattr(self, "calls", 0) + 1
            return super().training_step(batch, batch_idx) if self.calls % 2 else None

    rows = Logged("sharpness_aware")
    trainer(SharpnessAware(), rows, max_epochs=1).fit(Skips(), Loader())
    assert "sharpness_aware/norm" in rows.rows[-1]
    assert "sharpness_aware/sharpness" not in rows.rows[-1]


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
def test_modules_whose_batches_cannot_be_passed_again_are_refused() -> None:
    class Iterates(Toy):
        def training_step(self, dataloader_iter: Any) -> Any:
            return self.loss(next(dataloader_iter)[0])

    class Sparse(Toy):
        def __init__(self) -> None:
            super().__init__(optimizer="SGD")
            self.words = nn.Embedding(3, 2, sparse=True)

    with pytest.raises(ValueError, match="training_step must take a batch for SharpnessAware"):
        trainer(SharpnessAware()).fit(Iterates(), Loader())
    with pytest.raises(
        ValueError, match="SharpnessAware needs dense gradients, got the sparse ones of 'words'"
    ):
        trainer(SharpnessAware()).fit(Sparse(), Loader())


def test_frozen_weights_that_a_step_writes_are_written_once() -> None:
    class Teacher(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.seen = nn.Parameter(torch.zeros(()), requires_grad=False)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.seen.add_(1)
            return super().training_step(batch, batch_idx)

    module = Teacher()
    trainer(SharpnessAware()).fit(module, Loader())
    assert module.seen.item() == 15
