"""Norm penalties: against a slow twin, autograd and scikit-learn, and exact zeros where they are promised."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from sklearn.linear_model import ElasticNet, Lasso
from torch import Tensor, nn

from lightning_tricks import ConflictError, GradientClip, NormPenalty, WeightDecay
from tests.contract.test_together import reads_per_step
from tests.toys import Loader, Toy, TwoOptimizers, assert_equal, scaler_plugin, trainer, weights

PROXIMAL = {
    "SGD": {"lr": 0.1, "momentum": 0.9},
    "Adam": {"lr": 0.01, "amsgrad": True},
    "AdamW": {"lr": 0.01, "weight_decay": 0.0},
    "Adagrad": {"lr": 0.05, "lr_decay": 0.1},
    "RMSprop": {"lr": 0.01, "centered": True},
}


def trained(module: Toy, *callbacks: Callback, **settings: Any) -> dict[str, Tensor]:
    trainer(*callbacks, **settings).fit(module, Loader())
    return weights(module)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.filterwarnings("ignore:NormPenalty. Adam divides")
def test_in_the_gradient_it_is_a_term_of_the_loss(optimizer: str) -> None:
    class InLoss(Toy):
        def loss(self, batch: Any) -> Tensor:
            matrices = (self.body[0].weight, self.head.weight)
            norms = sum(0.03 * w.abs().sum() + 0.2 / 2 * w.square().sum() for w in matrices)
            return super().loss(batch) + norms

    theirs = trained(InLoss(optimizer=optimizer, lr=0.02).double(), precision="64-true")
    penalty = NormPenalty(l1=0.03, l2=0.2)
    ours = trained(Toy(optimizer=optimizer, lr=0.02).double(), penalty, precision="64-true")
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-8)


def divisor(optimizer: torch.optim.Optimizer, parameter: Tensor) -> Any:
    """Return what the papers of each optimizer divide its step by, entry by entry."""
    state, group = optimizer.state[parameter], optimizer.param_groups[0]
    match type(optimizer).__name__:
        case "Adam":
            return (state["max_exp_avg_sq"] / (1 - 0.999 ** state["step"].item())).sqrt() + 1e-8
        case "AdamW":
            return (state["exp_avg_sq"] / (1 - 0.999 ** state["step"].item())).sqrt() + 1e-8
        case "Adagrad":
            return (1 + (state["step"].item() - 1) * group["lr_decay"]) * (state["sum"].sqrt() + 1e-10)
        case "RMSprop":
            return (state["square_avg"] - state["grad_avg"] ** 2).sqrt() + 1e-8
    return 1.0


@pytest.mark.parametrize("optimizer", PROXIMAL)
def test_proximal_steps_against_a_slow_twin(optimizer: str) -> None:
    torch.manual_seed(0)
    target, start = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    twin = nn.Parameter(start.clone())
    slow = getattr(torch.optim, optimizer)([twin], **PROXIMAL[optimizer])

    class Pull(Toy):
        def __init__(self) -> None:
            super().__init__(optimizer=optimizer, **PROXIMAL[optimizer])
            self.body, self.head = nn.Sequential(), nn.Linear(4, 6, bias=False).double()
            self.head.weight.data.copy_(start)

        def loss(self, batch: Any) -> Tensor:
            return (self.head.weight - target).pow(2).sum()

    module = Pull()
    trainer(NormPenalty(l1=0.8, proximal=True), max_epochs=8).fit(module, Loader())
    for _ in range(40):
        slow.zero_grad()
        (twin - target).pow(2).sum().backward()
        slow.step()
        with torch.no_grad():
            kappa = slow.param_groups[0]["lr"] * 0.8 / divisor(slow, twin)
            twin.copy_(twin.sign() * (twin.abs() - kappa).clamp(min=0))
    torch.testing.assert_close(module.head.weight.data, twin.data, rtol=0, atol=1e-12)


@pytest.mark.parametrize("l2", [None, 0.5])
def test_it_converges_to_the_lasso_and_the_elastic_net_of_scikit_learn(l2: float | None) -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(60, 8))
    targets = inputs @ np.array([2.0, -1.0, 0.5, 0, 0, 0, 0, 0]) + 0.3 * rng.normal(size=60)
    if l2 is None:
        expected = Lasso(alpha=0.2, fit_intercept=False, tol=1e-12).fit(inputs, targets).coef_
    else:
        net = ElasticNet(alpha=0.7, l1_ratio=0.2 / 0.7, fit_intercept=False, tol=1e-12)
        expected = net.fit(inputs, targets).coef_
    x, y = torch.tensor(inputs), torch.tensor(targets)

    class Regression(Toy):
        def __init__(self) -> None:
            super().__init__(optimizer="SGD", lr=0.1)
            self.body, self.head = nn.Sequential(), nn.Linear(8, 1, bias=False).double()

        def loss(self, batch: Any) -> Tensor:
            return (self.head(x)[:, 0] - y).square().mean() / 2

    module = Regression()
    trainer(NormPenalty(l1=0.2, l2=l2, proximal=True), max_epochs=100).fit(module, Loader())
    found = module.head.weight.detach()[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-8)
    assert 0 < (expected == 0).sum() == (found == 0).sum()


def test_under_adam_only_the_proximal_form_makes_zeros() -> None:
    def zeros(penalty: NormPenalty) -> int:
        found = trained(Toy(optimizer="Adam", lr=0.01), penalty, max_epochs=20)
        return int((found["body.0.weight"] == 0).sum())

    with pytest.warns(UserWarning, match=r"Adam divides .* use WeightDecay for l2, proximal=True for l1"):
        assert zeros(NormPenalty(l1=0.02)) == 0
    assert zeros(NormPenalty(l1=0.02, proximal=True)) > 5


class Overflows(Toy):
    """The gradient of one step is not finite."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * (math.inf if self.trainer.fit_loop.epoch_loop.total_batch_idx == 7 else 1.0)


class Shrinks(Callback):
    """Notes the steps that changed a weight."""

    def __init__(self) -> None:
        self.still: list[int] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.before = pl_module.head.weight.detach().clone()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if torch.equal(self.before, pl_module.head.weight):
            self.still.append(trainer.fit_loop.epoch_loop.total_batch_idx)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_cancelled_step_shrinks_nothing(fused: bool, scaled: bool) -> None:
    settings: dict[str, Any] = {"plugins": [scaler_plugin()]} if scaled else {}
    skip = [] if scaled else [GradientClip(max_norm=1e9, non_finite="skip")]
    watch = Shrinks()
    penalty = NormPenalty(l1=0.01, proximal=True)
    found = trained(Overflows(fused=fused), penalty, *skip, watch, **settings)
    assert watch.still == [7]
    assert all(value.isfinite().all() for value in found.values())


def test_two_optimizers_are_each_shrunk_as_they_step() -> None:
    module = TwoOptimizers()
    runner = trainer(NormPenalty(l1=0.05, proximal=True), max_epochs=20)
    runner.fit(module, Loader())
    assert (module.body[0].weight == 0).any()
    assert (module.head.weight == 0).any()


def test_logs_strengths_and_zeros(tmp_path: Path) -> None:
    module = Toy(optimizer="SGD")
    penalty = NormPenalty(l1="1e6 * constant()", l2=0.0, proximal=True)
    runner = trainer(penalty, logger=True, default_root_dir=tmp_path)
    runner.fit(module, Loader())
    last = {name: value.item() for name, value in runner.logged_metrics.items()}
    assert last == {"norm_penalty/l1": 1e6, "norm_penalty/l2": 0.0, "norm_penalty/zeros": 1.0}


@pytest.mark.parametrize("fused", [True, False])
def test_nothing_is_read_back(fused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    penalty = NormPenalty(l1=1e-3, proximal=True)
    assert reads_per_step(penalty, fused=fused) == reads_per_step(fused=fused)


def test_neutral_strengths_change_nothing() -> None:
    assert_equal(trained(Toy(optimizer="SGD")), trained(Toy(optimizer="SGD"), NormPenalty(l1=0.0, l2=0.0)))


@pytest.mark.filterwarnings("ignore:NormPenalty. AdamW divides")
def test_l2_meets_other_decay() -> None:
    with pytest.raises(ConflictError, match="'weight_decay' must have one owner, got NormPenalty and AdamW"):
        trained(Toy(), NormPenalty(l2=0.1))
    with pytest.raises(ConflictError, match="got NormPenalty and WeightDecay"):
        trained(Toy(optimizer="SGD"), NormPenalty(l2=0.1), WeightDecay())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "l1 or l2 must be given, got None for both"),
        ({"l1": -1.0}, "l1 must lie in"),
        ({"l2": 0.1, "proximal": True}, "l1 must be given with proximal=True, got None"),
    ],
)
def test_bad_settings(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        NormPenalty(**settings)


def test_an_unknown_optimizer_has_no_proximal_step() -> None:
    with pytest.raises(ValueError, match="proximal must be False with NAdam, of which it is unknown"):
        trained(Toy(optimizer="NAdam"), NormPenalty(l1=0.1, proximal=True))
