"""Averages of any length, put together from snapshots of a few.

    m = sum_i x_i m_i

with the coefficients of :func:`~lightning_tricks.averaging.power_profile.profile_fit` and the averages m_i of
all gammas at all moments.

Reference: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", 2024,
https://arxiv.org/abs/2312.02696, section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from typing import Self

import torch
from torch import Tensor

from lightning_tricks.averaging.power_profile import gamma_of, profile_fit
from lightning_tricks.averaging.trajectory import Moment, Trajectory

__all__ = ["LARGEST_ERROR", "Synthesis", "synthesize_ema"]

LARGEST_ERROR = 0.1
"""How far a profile may be from the one that is asked for, as a share of its norm."""


def synthesize_ema(
    path: str | PathLike[str], *, sigma_rel: float = 0.1, step: int | None = None
) -> dict[str, Tensor]:
    """Return the exponential average of relative width ``sigma_rel`` of a run with ``PostHocEMA``.

    Its tensors are summed up one after the other in 32 bits (in 64 where the weights have them). What
    rounding has taken from the snapshots counts by their coefficients, and stands in the error. BatchNorm
    statistics are those of the live weights.

    Args:
        path: The folder ``post_hoc_ema``, or that of the checkpoints in which it lies.
        sigma_rel: The standard deviation of the times that enter, as a share of all time until ``step``; with
            the powers 16.97 and 6.94 usually in [0.03, 0.25].
        step: Where the run is taken to have ended, at one of the snapshots: in real steps since averaging
            began; ``None`` for the last.

    Returns:
        Weights as a module's ``load_state_dict`` takes them, on the CPU, of at least 32 bits; what was not
        averaged, such as buffers, as the last snapshot until ``step`` has it.

    Raises:
        FileNotFoundError: If there is no such folder, or a file of it is missing.
        TypeError: If a number is none.
        ValueError: If the snapshots cannot give that average to 10 % of its profile, or a file is damaged.
    """
    return dict(Synthesis.of(Trajectory.read(path), sigma_rel=sigma_rel, step=step).tensors())


@dataclass(frozen=True)
class Synthesis:
    """How an average is put together.

    Attributes:
        sigma_rel: Its relative width.
        gamma: The power of its profile.
        step: The real steps until its end.
        error: How far its profile is from the one that is asked for, as a share of the norm of this, and how
            far rounded snapshots may put it off, as a share of the weights.
        moments: The snapshots, oldest first, at least one.
        coefficients: By how much each average enters, for each snapshot and gamma.
    """

    sigma_rel: float
    gamma: float
    step: int
    error: float
    moments: list[Moment]
    coefficients: list[list[float]]

    @classmethod
    def of(cls, trajectory: Trajectory, *, sigma_rel: float, step: int | None = None) -> Self:
        """Return that of an average of ``trajectory``, as :func:`synthesize_ema` takes them.

        Raises:
            TypeError: If a number is none.
            ValueError: If the snapshots cannot give it.
        """
        gamma = gamma_of(sigma_rel)
        moments = trajectory.moments if step is None else trajectory.until(step).moments
        end = moments[-1].updates
        pairs = [(moment.updates, power) for moment in moments for power in moment.gammas]
        ends, gammas = torch.tensor(pairs, dtype=torch.float64).T
        found, error = profile_fit(ends, gammas, end=end, gamma=gamma)
        # Each average is off by what its file has rounded away, and counts by the size of its coefficient.
        error += float(found.abs().sum()) * max(moment.precision for moment in moments)
        if error > LARGEST_ERROR:
            raise ValueError(
                f"sigma_rel must be a width that the {len(moments)} snapshots until step {end} can give to "
                f"{LARGEST_ERROR:.0%}, got {sigma_rel!r} with an error of {error:.0%}: take "
                "one nearer to those of the gammas, or more snapshots in the next run"
            )
        rest = iter(found.tolist())
        each = [[next(rest) for _ in moment.gammas] for moment in moments]
        return cls(sigma_rel, gamma, end, error, list(moments), each)

    @property
    def names(self) -> list[str]:
        """The names of all tensors of the state dict."""
        last = self.moments[-1]
        return [*last.averages[0], *last.live]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the entries of the average as a state dict, each read as it comes up.

        Raises:
            ValueError: If a snapshot lacks a tensor that later ones have.
        """
        last = self.moments[-1]
        sums: dict[object, Tensor] = {}  # a tensor that has two names once
        for name, value in last.averages[0].items():
            place = value.data_ptr(), value.shape, value.stride()
            if place not in sums:
                sums[place] = self._sum(name)
            yield name, sums[place]
        for name, value in last.live.items():
            yield name, value.clone()

    def _sum(self, name: str) -> Tensor:
        latest = self.moments[-1].value(0, name)
        total = torch.zeros_like(latest, dtype=torch.promote_types(latest.dtype, torch.float32))
        for moment, coefficients in zip(self.moments, self.coefficients, strict=True):
            for index, coefficient in enumerate(coefficients):
                total.add_(moment.value(index, name).to(total), alpha=coefficient)
        return total
