"""When stages open: moments of a run, and metrics that stall."""

from __future__ import annotations

import math

import pytest

from lightning_tricks.core.duration import Duration
from lightning_tricks.network.openings import Plateau, opening_moments


@pytest.mark.parametrize(
    ("at", "written"),
    [
        (3, [3, 6, 9]),
        ("1 epoch", ["1 epoch", "2 epochs", "3 epochs"]),
        ("20%", ["20%", "40%", "60%"]),
        (0, [0, 0, 0]),
        ([0, "1 epoch", "90%"], [0, "1 epoch", "90%"]),
    ],
)
def test_moments(at, written):
    assert list(map(repr, opening_moments(at, 3))) == list(map(repr, written))


def test_no_later_stage_needs_no_moment():
    assert opening_moments("1 epoch", 0) == opening_moments([], 0) == ()


@pytest.mark.parametrize(
    ("at", "error", "message"),
    [
        ("40%", ValueError, "at must leave room for 3 openings within 100%, got '40%'"),
        ([1, 2], ValueError, r"at must hold a moment for each stage but the first, 3 in all, got \[1, 2\]"),
        (["2 epochs", "1 epoch", 9], ValueError, "the moments of at must not go back"),
        ([1, 2, 0.5], TypeError, r"at\[2\] must be a whole number of steps"),
        (0.5, TypeError, "at must be a whole number of steps"),
        (-1, ValueError, "at must be at least 0"),
        ("soon", ValueError, "at must be a whole number of steps or text"),
    ],
)
def test_moments_that_are_refused(at, error, message):
    with pytest.raises(error, match=message):
        opening_moments(at, 3)


def test_a_moment_keeps_its_unit():
    assert opening_moments("0.5 epochs", 2) == (Duration(0.5, "epochs"), Duration(1.0, "epochs"))


def firings(plateau, values):
    """Return the indices at which it fires, when a stage is opened each time."""
    state, fired = plateau.start(), []
    for index, value in enumerate(values):
        state = plateau.observe(state, value)
        if plateau.fires(state):
            fired.append(index)
            state = plateau.rest(state)
    return fired


def torch_firings(values, patience, min_delta, mode):
    """Return the same by torch's scheduler, whose patience is the number of bad epochs *allowed*."""
    import torch

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode, 0.5, patience - 1, threshold=min_delta, threshold_mode="abs", eps=0.0
    )
    rates = [1.0]
    for value in values:
        plateau.step(value)
        rates.append(optimizer.param_groups[0]["lr"])
    return [i for i in range(len(values)) if rates[i + 1] < rates[i]]


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize(("patience", "min_delta"), [(1, 0.0), (2, 0.0), (2, 0.25), (3, 0.5)])
def test_plateau_fires_when_torchs_would(mode, patience, min_delta):
    values = [1.0, 0.5, 0.75, 0.5, 0.25, 0.25, 0.25, 0.0, 2.0, math.nan, 3.0, 2.5, 2.0, 4.0, -1.0, -1.0, -1.0]
    ours = firings(Plateau("x", patience=patience, min_delta=min_delta, mode=mode), values)
    assert ours == torch_firings(values, patience, min_delta, mode)


def test_values_that_are_not_finite():
    assert firings(Plateau("x", patience=2), [math.nan, math.nan, 1.0, math.nan, 1.0]) == [1, 4]
    assert firings(Plateau("x", patience=2), [math.inf, math.inf, -math.inf, -math.inf, 0.0]) == [1, 4]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"monitor": ""}, "monitor must not be empty, got ''"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"min_delta": -0.1}, r"min_delta must lie in \[0.0, inf\), got -0.1"),
        ({"mode": "least"}, "mode must be one of 'min', 'max', got 'least'"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Plateau(**{"monitor": "x", **settings})


def test_only_the_metric_may_be_given_without_its_name():
    assert repr(Plateau("x")) == "Plateau(monitor='x', patience=2, min_delta=0.0, mode='min')"
    with pytest.raises(TypeError):
        Plateau("x", 2)
