"""The Fisher information, beside a slow loop over batches of one sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from lightning_tricks.core.fisher import fisher_information

Batches = list[tuple[Tensor, Tensor]]


class Net(nn.Module):
    """BatchNorm, dropout, a frozen bias, one that is not used and a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Tanh())
        self.head = nn.Linear(4, 4)
        self.head.weight = self.body[0].weight
        self.head.bias.requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(2))
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Counting(Net):
    """Writes into a buffer and looks at numbers, which cannot be vectorized."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return super().forward(x) * (2.0 if x.sum().item() > 0 else 1.0)


def data() -> Batches:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(n, 4, generator=generator), torch.randint(0, 4, (n,), generator=generator))
        for n in (5, 3)
    ]


def mean_loss(module: nn.Module, batch: Any) -> Tensor:
    return cross_entropy(module(batch[0]), batch[1])


def slowly(module: nn.Module, batches: Batches) -> dict[str, Tensor]:
    """Return the same by gradients of one sample after the other, as one would write it down."""
    module.eval()
    learning = {name: p for name, p in module.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in learning.items()}
    for xs, ys in batches:
        for x, y in zip(xs, ys, strict=True):
            module.zero_grad()
            mean_loss(module, (x[None], y[None])).backward()
            for name, p in learning.items():
                total[name] += 0.0 if p.grad is None else p.grad.double() ** 2
    count = sum(len(ys) for _, ys in batches)
    return {name: value / count for name, value in total.items()}


@pytest.mark.parametrize("kind", [Net, Counting])
def test_it_is_the_mean_over_samples_of_squared_gradients(kind: type[Net]) -> None:
    torch.manual_seed(0)
    net = kind().train()
    net.body[1].running_mean.fill_(0.3)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    calls = []

    def counted(module: nn.Module, batch: Any) -> Tensor:
        calls.append(batch)
        return mean_loss(module, batch)

    found = fisher_information(net, data(), counted)
    # Where that is possible a batch at a time, else sample by sample after the first attempt of each batch.
    assert len(calls) == (2 if kind is Net else 2 + 8)
    assert net.training and net.body[2].training and all(p.grad is None for p in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    wanted = slowly(net, data())
    assert set(found) == set(wanted) and "head.bias" not in found and "head.weight" not in found
    for name, value in wanted.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name].double(), value, rtol=1e-5, atol=1e-9)
    assert not found["unused"].any()


def test_for_logistic_regression_it_is_the_closed_form() -> None:
    # d/dw log p = (y - p) x
    torch.manual_seed(0)
    layer, (batch, _) = nn.Linear(3, 1, bias=False).double(), (torch.randn(50, 3).double(), None)
    y = torch.randint(0, 2, (50,)).double()
    p = torch.sigmoid(batch @ layer.weight[0].detach())
    wanted = ((y - p)[:, None] * batch).square().mean(0)

    def loss(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(module(batch["x"])[:, 0], batch["y"])

    found = fisher_information(layer, [{"x": batch, "y": y}], loss)
    torch.testing.assert_close(found["weight"][0], wanted, rtol=1e-10, atol=0.0)


def test_batches_and_tiny_gradients_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 2)

    def tiny(module: nn.Module, x: Tensor) -> Tensor:
        return module(x).square().sum() * 1e-22  # squares of these are 0 in single precision

    x = torch.randn(6, 4)
    whole = fisher_information(layer.double(), [x.double()], tiny)
    monkeypatch.setattr("lightning_tricks.core.fisher._MEMORY", 2 * 10 * 8)  # two samples at a time
    split = fisher_information(layer, [x[:1].double(), x[1:].double()], tiny)
    assert float(whole["weight"].max()) > 1e-45
    torch.testing.assert_close(split, whole, rtol=1e-12, atol=0.0)
    single = fisher_information(layer.float(), [x], tiny)["weight"]
    torch.testing.assert_close(single, whole["weight"].float(), rtol=1e-4, atol=1e-45)


def test_complex_parameters_have_real_information() -> None:
    net = nn.ParameterDict({"w": torch.tensor([1.0 + 2.0j])})
    found = fisher_information(
        net, [torch.ones(2, 1)], lambda module, x: (module["w"] * x).abs().square().sum()
    )
    assert found["w"].dtype == torch.float32
    torch.testing.assert_close(found["w"], torch.tensor([20.0]))  # |2 w| ** 2


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((torch.zeros(3, 4), torch.zeros(2)), r"counts samples, got a tuple of shapes \[\(3, 4\), \(2,\)\]"),
        ({"x": torch.zeros(3, 4), "t": torch.tensor(1)}, r"got a dict of shapes \[\(3, 4\), \(\)\]"),
        ("text", r"got a str of shapes \[\]"),
    ],
)
def test_batches_without_samples_are_refused(batch: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fisher_information(nn.Linear(4, 1), [batch], lambda module, x: mse_loss(module(x[0]), x[1]))


def test_no_sample_is_refused_and_errors_of_the_loss_come_out() -> None:
    for batches in ([], [torch.zeros(0, 4)]):
        with pytest.raises(ValueError, match="batches must hold at least one sample, got none"):
            fisher_information(nn.Linear(4, 1), batches, lambda module, x: module(x).sum())
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        fisher_information(nn.Linear(4, 1), [torch.zeros(2, 3)], lambda module, x: module(x).sum())


def test_a_loss_without_a_gradient_is_refused() -> None:
    shape = r"loss must return a tensor of shape \(\), got"
    for loss, error, message in (
        (lambda module, x: module(x).sum().detach(), ValueError, "loss must depend on the module's param"),
        (lambda module, x: module(x), TypeError, rf"{shape} shape \(1, 2\)"),
        (lambda module, x: None, TypeError, f"{shape} None"),
    ):
        with pytest.raises(error, match=message):
            fisher_information(nn.Linear(4, 2), [torch.ones(2, 4)], loss)
