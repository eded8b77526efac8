"""Federated optimization: a server steps towards the mean of the models that its clients sent back.

    FedAvgM  v <- momentum v + Delta                    theta = theta_0 + lr v
    FedAdam  m <- beta_1 m + (1 - beta_1) Delta
             v <- beta_2 v + (1 - beta_2) Delta ** 2    theta = theta_0 + lr m / (sqrt(v) + tau)

``theta_0`` is the server's model and ``Delta = sum_i n_i / n theta_i - theta_0`` its pseudo-gradient; m and v
begin with 0, without correction.

References: Hsu et al., "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification", 2019, https://arxiv.org/abs/1909.06335; Reddi et al., "Adaptive Federated Optimization",
2021, https://arxiv.org/abs/2003.00295, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_tricks.core import checks
from lightning_tricks.core.tensors import Model
from lightning_tricks.fusion.by_samples import BySamples
from lightning_tricks.fusion.methods import check_base, check_finite, floating
from lightning_tricks.fusion.pieces import combination, piecewise, reals, weighted

__all__ = ["FedAdam", "FedAvgM", "fed_adam", "fed_avg_m"]

Step = Callable[[Tensor, Tensor], Tensor]
"""How far the server goes, from its pseudo-gradient and what it remembers (rows), which it changes."""


def fed_avg_m(
    base: Model,
    models: Sequence[Model],
    state: Model | None = None,
    *,
    samples: Sequence[float],
    lr: float = 1.0,
    momentum: float = 0.9,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the server's model after a step with momentum, and its state for the next one.

    Args:
        base: The server's model.
        models: What became of it at each client; of its names, shapes and types.
        state: What the step before returned; ``None`` for the first.
        samples: How many each of ``models`` was trained on.
        lr: Above 0.
        momentum: In [0, 1).

    Raises:
        ValueError: If the models do not fit one another, or a setting lies outside.

    Example:
        >>> base, state = {"w": torch.tensor([0.0])}, None
        >>> for _ in range(3):
        ...     client = {"w": base["w"] + 1}
        ...     base, state = fed_avg_m(base, [client], state, samples=[1], momentum=0.5)
        >>> base["w"]  # 1 + 1.5 + 1.75
        tensor([4.2500])
    """
    method = FedAvgM(tuple(samples), lr=lr)
    checks.in_range("momentum", momentum, 0.0, 1.0, open_high=True)

    def step(change: Tensor, memory: Tensor) -> Tensor:
        velocity = memory[0].mul_(momentum).add_(change)
        return velocity * float(lr)

    method.check_count(1 + len(models))
    return _served(base, models, state or {}, method.shares, step, rows=1)


def fed_adam(
    base: Model,
    models: Sequence[Model],
    state: Model | None = None,
    *,
    samples: Sequence[float],
    lr: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.99),
    tau: float = 1e-3,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the server's model after a step of Adam, and its state for the next one.

    Args:
        base: The server's model.
        models: What became of it at each client; of its names, shapes and types.
        state: What the step before returned; ``None`` for the first.
        samples: How many each of ``models`` was trained on.
        lr: Above 0.
        betas: Decay of the mean of the pseudo-gradient and of that of its square, each in [0, 1).
        tau: Above 0. The smaller it is, the less a step depends on how large the pseudo-gradient is.

    Raises:
        ValueError: If the models do not fit one another, or a setting lies outside.

    Example:
        >>> base, client = {"w": torch.tensor([0.0])}, {"w": torch.tensor([1.0])}
        >>> fused, _ = fed_adam(base, [client], samples=[1], lr=1.0, betas=(0.5, 0.75), tau=0.5)
        >>> fused["w"]  # 0.5 / (0.5 + 0.5)
        tensor([0.5000])
    """
    method = FedAdam(tuple(samples), lr=lr, betas=betas, tau=tau)
    method.check_count(1 + len(models))
    return _served(base, models, state or {}, method.shares, method.step, rows=2)


@torch.no_grad()
def _served(
    base: Model, models: Sequence[Model], state: Model, shares: Sequence[float], step: Step, *, rows: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    check_finite([base, *models])
    fused, after = {name: value.clone() for name, value in models[-1].items()}, {}
    # Those that no client changed as well, since they go on with the momentum that they have.
    for name in floating(base):
        entries = reals(base[name]).numel()
        fresh = torch.zeros(rows, entries, dtype=torch.float64, device=base[name].device)
        memory = after[name] = state[name].clone() if name in state else fresh
        fused[name] = _stepped([base[name], *(model[name] for model in models)], shares, step, memory)
    return fused, after


def _stepped(tensors: list[Tensor], shares: Sequence[float], step: Step, memory: Tensor) -> Tensor:
    """Return the first of ``tensors`` a step further; ``memory``, of shape (rows, entries), is changed."""

    def combine(start: int, parts: list[Tensor]) -> Tensor:
        base, *models = parts
        change = weighted(models, shares).sub_(base)
        return base.add_(step(change, memory[:, start : start + len(base)]))

    return piecewise(tensors, combine)


@dataclass(frozen=True)
class FedAvgM(BySamples):
    """Fuse by a server's first step towards the mean, which knows no momentum yet.

    Further steps need the server's state: :func:`fed_avg_m`.

    Args:
        samples: How many samples each model but the base was trained on; not below 0, and not all 0. ``None``
            for what their checkpoints say, as in :class:`FedAvg`.
        lr: Above 0; 1 goes to the mean.
        base: File of the server's model; ``None`` if that is the first of the models.

    Example:
        >>> FedAvgM((300, 100), lr=0.5)
        FedAvgM(samples=(300, 100), lr=0.5, base=None)
    """

    lr: float = 1.0
    base: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.in_range("lr", self.lr, 0.0, open_low=True, open_high=True)
        check_base(self.base)

    @property
    def untrained(self) -> int:
        return 1

    def combine(self, name: str, tensors: list[Tensor]) -> Tensor:
        return combination(tensors, [1 - self.lr, *(self.lr * share for share in self.shares)])


@dataclass(frozen=True)
class FedAdam(BySamples):
    """Fuse by a server's first step of Adam.

    Further steps need the server's state: :func:`fed_adam`.

    Args:
        samples: How many samples each model but the base was trained on; not below 0, and not all 0. ``None``
            for what their checkpoints say, as in :class:`FedAvg`.
        lr: Above 0.
        betas: Decay of the mean of the pseudo-gradient and of that of its square, each in [0, 1).
        tau: Above 0. The smaller it is, the less the step depends on how large the pseudo-gradient is.
        base: File of the server's model; ``None`` if that is the first of the models.

    Example:
        >>> FedAdam((300, 100), lr=0.1)
        FedAdam(samples=(300, 100), lr=0.1, betas=(0.9, 0.99), tau=0.001, base=None)
    """

    lr: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    tau: float = 1e-3
    base: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.in_range("lr", self.lr, 0.0, open_low=True, open_high=True)
        if not isinstance(self.betas, list | tuple) or len(self.betas) != 2:
            raise TypeError(f"betas must be two numbers, got {self.betas!r}")
        for beta in self.betas:
            checks.in_range("every entry of betas", beta, 0.0, 1.0, open_high=True)
        object.__setattr__(self, "betas", tuple(self.betas))
        checks.in_range("tau", self.tau, 0.0, open_low=True, open_high=True)
        check_base(self.base)

    @property
    def untrained(self) -> int:
        return 1

    def step(self, change: Tensor, memory: Tensor) -> Tensor:
        """Return how far the server goes; ``memory``, the means of ``change`` and its square, is changed."""
        (first, second), (mean, square) = self.betas, memory
        mean.mul_(first).add_(change, alpha=1 - first)
        square.mul_(second).addcmul_(change, change, value=1 - second)
        step: Tensor = mean.div(square.sqrt().add_(float(self.tau))).mul_(float(self.lr))
        return step

    def combine(self, name: str, tensors: list[Tensor]) -> Tensor:
        entries = reals(tensors[0]).numel()
        memory = torch.zeros(2, entries, dtype=torch.float64, device=tensors[0].device)
        return _stepped(tensors, self.shares, self.step, memory)
