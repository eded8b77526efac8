"""Power-function averages as profiles over the run, and how some are put together to give another.

    p(t) = (gamma + 1) t ** gamma / T ** (gamma + 1)    for 0 < t <= T: by how much time t enters at time T
    sigma_rel = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3))    its standard deviation, as a share of T

    m_t = (1 - n / t) ** (gamma + 1) m_{t-n} + (1 - (1 - n / t) ** (gamma + 1)) theta_t

An average that moves so at each n-th step weighs each theta_t by the integral of p from t - n to t: whatever
n, it has the profile p. The coefficients x_i with which averages of profiles p_i give best that of profile p
solve

    minimise || p - sum_i x_i p_i ||    such that    sum_i x_i = 1

in the inner product <p, q>, the integral of p(t) q(t). The constraint keeps at its value a weight that
training leaves alone.

Reference: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", 2024,
https://arxiv.org/abs/2312.02696, section 3 and appendix C.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_tricks.core import checks

__all__ = ["WIDEST", "gamma_of", "profile_fit", "profile_products", "sigma_rel_of"]

WIDEST = 1 / math.sqrt(12)
"""The relative width of a plain mean, gamma = 0; what is wider gives its most to the first weights."""


def sigma_rel_of(gamma: float) -> float:
    """Return the relative width of the profile of power ``gamma``, which is at least 0.

    Example:
        >>> round(sigma_rel_of(6.94), 4), round(sigma_rel_of(16.97), 4)
        (0.1, 0.05)
    """
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def gamma_of(sigma_rel: float) -> float:
    """Return the power of the profile of relative width ``sigma_rel``: the inverse of :func:`sigma_rel_of`.

    Args:
        sigma_rel: Above 0, at most 0.288675, that of the plain mean.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it lies outside.

    Example:
        >>> round(gamma_of(0.1), 2), round(gamma_of(0.05), 2)
        (6.94, 16.97)
    """
    # Down to a width of 1e-4, one step in ten thousand, so that no float overflows.
    checks.in_range("sigma_rel", sigma_rel, 1e-4, WIDEST)
    inverse = sigma_rel**-2
    # The root of gamma ** 3 + 7 gamma ** 2 + (16 - inverse) gamma + 12 - inverse that is not negative, where
    # this is convex. At 1 / sigma_rel it is above 0, so that Newton's steps fall towards the root.
    gamma = 1 / sigma_rel
    while True:
        value = ((gamma + 7) * gamma + 16 - inverse) * gamma + 12 - inverse
        lower = gamma - value / ((3 * gamma + 14) * gamma + 16 - inverse)
        if not lower < gamma:
            return max(gamma, 0.0)
        gamma = lower


def profile_products(ends: Tensor, gammas: Tensor, other_ends: Tensor, other_gammas: Tensor) -> Tensor:
    """Return the inner products of profiles with others, in 1 / (unit of the ends).

    Args:
        ends: T of each profile, above 0; float64, shape (profiles,).
        gammas: Their powers, likewise.
        other_ends: T of the others; shape (others,).
        other_gammas: Their powers.

    Returns:
        Shape (profiles, others).

    Example:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> profile_products(one, 0 * one, 2 * one, 0 * one)  # a half over the half that both share
        tensor([[0.5000]], dtype=torch.float64)
    """
    first, power = ends[:, None], gammas[:, None]
    later = torch.where(first < other_ends, other_gammas, power)
    ratio = torch.minimum(first, other_ends) / torch.maximum(first, other_ends)
    scale = (power + 1) * (other_gammas + 1) / (power + other_gammas + 1)
    return scale * ratio**later / torch.maximum(first, other_ends)


def profile_fit(ends: Tensor, gammas: Tensor, *, end: float, gamma: float) -> tuple[Tensor, float]:
    """Return the coefficients of the best sum of profiles, and how far it is from the one that is wanted.

    Args:
        ends: T of each profile that there is, above 0, no two with one power at one T; float64, shape
            (profiles,).
        gammas: Their powers, likewise.
        end: T of the one wanted.
        gamma: Its power.

    Returns:
        Coefficients, shape (profiles,), which add up to 1; and the norm of the difference, as a share of the
        norm of what is wanted.

    Example:
        >>> ends, gammas = torch.tensor([[4.0, 8.0], [1.0, 1.0]], dtype=torch.float64)
        >>> found, error = profile_fit(ends, gammas, end=6.0, gamma=1.0)  # a time between the two
        >>> found, round(error, 2)
        (tensor([0.3194, 0.6806], dtype=torch.float64), 0.69)
    """
    ends = ends / end  # so that the products are near 1
    one = torch.ones(1, dtype=torch.float64)
    among = profile_products(ends, gammas, ends, gammas)
    wanted = profile_products(ends, gammas, one, gamma * one)
    # With profiles of norm 1 the equations are better conditioned.
    norms = among.diagonal().sqrt()
    sides = torch.cat([wanted, torch.ones_like(wanted)], dim=1) / norms[:, None]
    free, ones = (torch.linalg.solve(among / norms / norms[:, None], sides) / norms[:, None]).unbind(dim=1)
    found = free + (1 - free.sum()) / ones.sum() * ones
    whole = profile_products(one, gamma * one, one, gamma * one)[0, 0]
    rest = whole - 2 * found @ wanted[:, 0] + found @ among @ found
    return found, math.sqrt(max(float(rest / whole), 0.0))
