"""How much each of several losses counts, from the products of their gradients.

    G_ij = g_i . g_j,    g <- sum of w_i g_i

    Sum     w = 1
    PCGrad  w = sum of w^i;  w^i starts as the i-th unit vector, and for each other j in random order
            w^i_j <- w^i_j - min(0, (G w^i)_j) / G_jj
    CAGrad  g = T argmax over d of min_i g_i . d    where ||d - g_0|| <= c ||g_0||,    g_0 = mean of all g_i

``g_i`` is the gradient of loss ``i`` of ``T``. Each of them lies in the span of the gradients, so weights say
all, and they follow from ``G`` alone. CAGrad is multiplied by ``T``, as in its authors' code, so that with
c = 0 it is the sum as well. All of it stays on the device of ``G``, but for :class:`TorchJD`.

References: Yu et al., "Gradient Surgery for Multi-Task Learning", 2020, https://arxiv.org/abs/2001.06782,
algorithm 1; Liu et al., "Conflict-Averse Gradient Descent for Multi-task Learning", 2021,
https://arxiv.org/abs/2110.14048, equation 3; Quinton and Rey, "Jacobian Descent for Multi-Objective
Optimization", 2024, https://arxiv.org/abs/2406.16232, which found that the Gramian is all it takes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_tricks.core import checks
from lightning_tricks.core.extras import extra

__all__ = ["CAGrad", "PCGrad", "Sum", "SurgeryMethod", "TorchJD"]

NEWTON_STEPS = 40
"""Of which each divides the distance from the optimum by about 5, once the first few have found the way."""


class SurgeryMethod(ABC):
    """Base of the policies; frozen dataclasses, which hold no state of a run themselves."""

    @abstractmethod
    def weights(self, gramian: Tensor, generator: torch.Generator) -> Tensor:
        """Return the weight of each gradient.

        Args:
            gramian: The products of the gradients, shape (losses, losses); at least float32.
            generator: Source of random choices, on the CPU and equal in all processes.

        Returns:
            Of shape (losses,), on the device and of the type of ``gramian``.
        """


@dataclass(frozen=True)
class Sum(SurgeryMethod):
    """The plain sum, as without the technique: the baseline of a comparison, at no cost.

    Example:
        >>> Sum().weights(torch.eye(2), torch.Generator())
        tensor([1., 1.])
    """

    def weights(self, gramian: Tensor, generator: torch.Generator) -> Tensor:
        return torch.ones_like(gramian[0])


@dataclass(frozen=True)
class PCGrad(SurgeryMethod):
    """Take out of each gradient what points against another one; without conflict it is the sum.

    Example:
        >>> gradients = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
        >>> PCGrad().weights(gradients @ gradients.T, torch.Generator()) @ gradients
        tensor([0.5000, 1.5000])
    """

    def weights(self, gramian: Tensor, generator: torch.Generator) -> Tensor:
        count = len(gramian)
        orders = torch.stack([torch.randperm(count, generator=generator) for _ in range(count)])
        rows = torch.arange(count, device=gramian.device)
        found = torch.eye(count, dtype=gramian.dtype, device=gramian.device)  # row i is w^i
        for others in orders.to(gramian.device, non_blocking=True).T:
            products = (gramian[others] * found).sum(1)
            over = (products < 0) & (others != rows)
            found[rows, others] -= torch.where(over, products / gramian[others, others], 0.0)
        return found.sum(0)


@dataclass(frozen=True)
class CAGrad(SurgeryMethod):
    """Go where the loss that gains least gains most, not far from the mean of the gradients.

    Solved by 40 Newton steps on the ball around the mean, to about six digits; 4 ms on a CPU.

    Attributes:
        c: How far from the mean as a share of its norm, in [0, 1). With 0 it is the sum; the paper takes 0.4
            to 0.5.

    Example:
        >>> gradients = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
        >>> CAGrad(0.5).weights(gradients @ gradients.T, torch.Generator()) @ gradients
        tensor([0.5000, 1.0000])
    """

    c: float = 0.4

    def __post_init__(self) -> None:
        """Check the setting."""
        object.__setattr__(self, "c", checks.in_range("c", self.c, 0.0, 1.0, open_high=True))

    def weights(self, gramian: Tensor, generator: torch.Generator) -> Tensor:
        if self.c == 0.0:
            return torch.ones_like(gramian[0])
        wide = gramian.double()
        mean = wide.mean()
        # Where the mean is 0, or gradients are not finite, nothing is to be gained.
        sane = (mean > 0) & torch.isfinite(wide).all()
        scaled = torch.where(sane, wide / mean, torch.eye(len(wide), dtype=wide.dtype, device=wide.device))
        shift = _ascend(scaled, max(self.c, 1e-9))  # whose square is still a number
        return torch.where(sane, 1.0 + len(wide) * shift, 1.0).to(gramian.dtype)


def _ascend(gramian: Tensor, radius: float) -> Tensor:
    """Return v that maximizes the least entry of G (1/T + v) where v . G v <= radius ** 2.

    By a barrier: maximize t + mu (sum of log(slack of each entry over t) + log(slack of the ball)), with
    coordinates in which the ball is round, v = L^-T y of G = L L^T, and mu falling to nothing.
    """
    count, trace = len(gramian), gramian.trace()
    eye = torch.eye(count, dtype=gramian.dtype, device=gramian.device)
    # Gradients may depend on one another; the ridge costs less than the digits that are promised.
    root = torch.linalg.cholesky_ex(gramian + 1e-10 * trace * eye).L
    base = gramian.mean(1)
    slopes = torch.cat([root, -torch.ones_like(base)[:, None]], 1)  # of the slacks, by y and t
    inside = torch.cat([torch.ones_like(base), torch.zeros_like(base[:1])])
    start = base.min() - radius * trace.sqrt()
    point = torch.cat([torch.zeros_like(base), start[None]])
    mu = radius * trace.sqrt()
    for _ in range(NEWTON_STEPS):
        slack, y = base + slopes @ point, point * inside
        room = radius**2 - y @ y
        slope = -(1 - inside) / mu - slopes.T @ (1 / slack) + 2 * y / room
        curve = slopes.T @ (slopes / slack[:, None] ** 2)
        curve = curve + torch.diag(2 * inside / room) + 4 * torch.outer(y, y) / room**2
        way = -torch.linalg.solve_ex(curve, slope[:, None]).result[:, 0]
        loss, along = slopes @ way, way * inside
        square, product = (along @ along).clamp(min=1e-300), y @ along
        to_ball = ((product**2 + square * room).sqrt() - product) / square
        to_edge = torch.where(loss < 0, -slack / loss, torch.inf).min()
        point = point + way * (0.7 * torch.minimum(to_ball, to_edge)).clamp(max=1.0)
        near = -(slope @ way) < 2.0
        mu = torch.where(near, 0.2 * mu, mu).clamp(min=1e-10)
    shift: Tensor = torch.linalg.solve_triangular(root.T, point[:-1, None], upper=True)[:, 0]
    return shift * (radius / (shift @ gramian @ shift).clamp(min=1e-300).sqrt()).clamp(max=1.0)


WEIGHTINGS = ("AlignedMTL", "DualProj", "IMTLG", "MGDA", "UPGrad")


@dataclass(frozen=True)
class TorchJD(SurgeryMethod):
    """A method of torchjd, with its own defaults; needs the extra ``surgery``.

    Multiplied by the number of losses, since those methods weigh a mean. They read back to the host. DualProj
    and UPGrad need a solver besides, which torchjd names.

    Attributes:
        weighting: ``"AlignedMTL"``, ``"DualProj"``, ``"IMTLG"``, ``"MGDA"`` or ``"UPGrad"``.
    """

    weighting: str = "MGDA"

    def __post_init__(self) -> None:
        """Check the setting, and that torchjd is there."""
        checks.one_of("weighting", self.weighting, WEIGHTINGS)
        self._build()

    def _build(self) -> torch.nn.Module:
        with extra("surgery"):
            from torchjd import aggregation
        built: torch.nn.Module = getattr(aggregation, f"{self.weighting}Weighting")()
        return built

    def weights(self, gramian: Tensor, generator: torch.Generator) -> Tensor:
        weights: Tensor = self._build()(gramian)
        return len(gramian) * weights
