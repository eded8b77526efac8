from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize

from lightning_tricks.averaging.ema_decay import power_share
from lightning_tricks.averaging.power_profile import (
    WIDEST,
    gamma_of,
    profile_fit,
    profile_products,
    sigma_rel_of,
)

DOUBLE = torch.float64


def test_powers_and_widths_are_those_of_the_paper():
    assert round(gamma_of(0.05), 2) == 16.97
    assert round(gamma_of(0.10), 2) == 6.94
    assert sigma_rel_of(16.97) == pytest.approx(0.05, rel=2e-4)
    assert sigma_rel_of(6.94) == pytest.approx(0.10, rel=3e-4)
    assert (
        sigma_rel_of(0.0)
        == pytest.approx(WIDEST)
        == pytest.approx(np.std(np.linspace(0, 1, 100_001)), rel=1e-4)
    )


@pytest.mark.parametrize("sigma_rel", [1e-4, 1e-3, 0.01, 0.05, 0.1, 0.2, 0.28, WIDEST])
def test_the_power_is_the_root_of_the_cubic_that_numpy_finds(sigma_rel):
    roots = np.roots([1, 7, 16 - sigma_rel**-2, 12 - sigma_rel**-2])
    assert gamma_of(sigma_rel) == pytest.approx(max(roots.real), rel=1e-9, abs=1e-9)
    assert sigma_rel_of(gamma_of(sigma_rel)) == pytest.approx(sigma_rel, rel=1e-12)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.29, 1e-5, math.inf, math.nan])
def test_a_width_that_no_profile_has_is_refused(sigma_rel):
    with pytest.raises(ValueError, match="sigma_rel must"):
        gamma_of(sigma_rel)


def profile(time, end, gamma):
    return (gamma + 1) * time**gamma / end ** (gamma + 1) * (time <= end)


@pytest.mark.parametrize(("end", "gamma"), [(1.0, 6.94), (0.3, 16.97), (0.8, 0.0)])
@pytest.mark.parametrize(("other", "power"), [(1.0, 6.94), (0.5, 2.0), (2.0, 16.97)])
def test_inner_products_are_the_integrals_that_scipy_finds(end, gamma, other, power):
    expected, _ = integrate.quad(
        lambda t: profile(t, end, gamma) * profile(t, other, power), 0, min(end, other), epsabs=1e-12
    )
    args = (torch.tensor([value], dtype=DOUBLE) for value in (end, gamma, other, power))
    assert profile_products(*args).item() == pytest.approx(expected, rel=1e-9)


def snapshots(count, gammas=(16.97, 6.94)):
    ends = torch.arange(1, count + 1, dtype=DOUBLE).repeat_interleave(len(gammas)) / count
    return ends, torch.tensor(gammas, dtype=DOUBLE).repeat(count)


@pytest.mark.parametrize("sigma_rel", [0.03, 0.075, 0.15, 0.25])
def test_the_fit_is_the_best_on_a_fine_grid(sigma_rel):
    ends, gammas = snapshots(6)
    found, error = profile_fit(ends, gammas, end=1.0, gamma=gamma_of(sigma_rel))
    times = (np.arange(20_000) + 0.5) / 20_000
    columns = np.stack([profile(times, e, g) for e, g in zip(ends.numpy(), gammas.numpy(), strict=True)], 1)
    wanted = profile(times, 1.0, gamma_of(sigma_rel))
    # Least squares in which the sum has been put in for the last coefficient.
    free, *_ = np.linalg.lstsq(columns[:, :-1] - columns[:, -1:], wanted - columns[:, -1], rcond=None)
    best = np.append(free, 1 - free.sum())
    np.testing.assert_allclose(found.numpy(), best, atol=2e-3 * abs(best).max())
    residual = np.linalg.norm(wanted - columns @ found.numpy()) / np.linalg.norm(wanted)
    assert error == pytest.approx(residual, rel=1e-2)
    assert found.sum().item() == pytest.approx(1.0, abs=1e-12)


def test_a_profile_that_is_there_is_found_alone():
    ends, gammas = snapshots(40)
    found, error = profile_fit(ends, gammas, end=1.0, gamma=6.94)
    torch.testing.assert_close(found, torch.eye(80, dtype=DOUBLE)[-1], atol=1e-9, rtol=0)
    assert error < 1e-6


def test_the_unit_of_time_does_not_matter_and_more_snapshots_are_better():
    gamma, errors = gamma_of(0.15), []
    for count in (5, 8, 20, 40):
        ends, gammas = snapshots(count)
        found, error = profile_fit(ends, gammas, end=1.0, gamma=gamma)
        scaled, same = profile_fit(1e6 * ends, gammas, end=1e6, gamma=gamma)
        torch.testing.assert_close(scaled, found)
        assert same == pytest.approx(error, rel=1e-5)
        errors.append(error)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.002


def test_two_hundred_snapshots_are_no_trouble_for_the_equations():
    ends, gammas = snapshots(200)
    found, error = profile_fit(ends, gammas, end=1.0, gamma=gamma_of(0.15))
    assert error < 1e-3
    assert found.abs().sum() < 2


def brute_force(thetas, gamma, every):
    """Move an average as the paper's code does, only each ``every`` steps; its time is that of the run."""
    mean = thetas[0]
    for t in range(every, len(thetas), every):
        beta = (1 - every / t) ** (gamma + 1)
        mean = beta * mean + (1 - beta) * thetas[t]
    return mean


@pytest.mark.parametrize("every", [1, 10, 100])
def test_an_average_that_moves_seldom_has_the_same_profile(every):
    steps, gamma = 20_000, 6.94
    mean, updates = 0.0, 0
    for t in range(every, steps + 1, every):
        mean += power_share(updates, gamma=gamma, steps=t - updates) * (t - mean)
        updates = t
    assert mean == pytest.approx(brute_force(np.arange(steps + 1.0), gamma, every), rel=1e-12)
    # Each theta stands for the steps since the last, so that it is half a move later than its profile.
    assert mean / steps == pytest.approx((gamma + 1) / (gamma + 2) + every / 2 / steps, abs=2e-5)
    assert round(mean / steps, 4) == {1: 0.8882, 10: 0.8884, 100: 0.8906}[every]


def test_irregular_moves_have_the_profile_too():
    rng = np.random.default_rng(0)
    times = np.unique(np.append(rng.integers(1, 5000, 2000), 5000))
    mean = updates = 0
    for t in times.tolist():
        mean += power_share(updates, gamma=6.94, steps=t - updates) * ((updates + t) / 2 - mean)
        updates = t
    assert mean / 5000 == pytest.approx(7.94 / 8.94, abs=1e-5)


def test_steps_that_only_the_device_knows_count_alike():
    for updates, steps in ((0, 1), (0, 10), (50, 1), (50, 10), (7, 0), (0, 0)):
        expected = power_share(updates, gamma=6.94, steps=steps)
        share = power_share(torch.tensor(updates), gamma=6.94, steps=torch.tensor(steps))
        assert float(share) == pytest.approx(expected, rel=1e-5)


def test_a_count_of_calls_in_the_place_of_steps_would_be_another_average():
    """What the best-known implementation does, as a reason for all this."""
    steps, every, gamma, mean = 20_000, 10, 6.94, 0.0
    for call in range(1, steps // every + 1):
        t = call * every
        beta = (1 - 1 / t) ** (gamma + 1)
        mean = beta * mean + (1 - beta) * t
    assert mean / steps == pytest.approx(0.4425, abs=1e-3)
    narrow = optimize.brentq(lambda g: (g + 1) / (g + 2) - 0.4425, -0.9, 20)
    assert narrow == pytest.approx((gamma + 1) / every - 1, abs=2e-3)
