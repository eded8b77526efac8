"""The interval of paired differences, beside scipy's bootstrap and cases worked out by hand."""

from __future__ import annotations

import math

import pytest
from scipy.stats import bootstrap, norm, t

from lightning_tricks.study.bootstrap import Estimate, expanded_tail, paired_effect

WITH, WITHOUT = [3.1, 2.9, 3.5, 3.3, 2.7, 3.9, 3.0, 3.2], [3.0, 3.1, 2.9, 3.0, 2.8, 3.1, 2.6, 3.1]


def hundredth(values, place):
    return sorted(values)[round(place * (len(values) - 1))]


@pytest.mark.parametrize("pairs", [4, 5, 8])
def test_it_is_scipys_percentile_interval_at_the_expanded_level(pairs):
    with_, without = WITH[:pairs], WITHOUT[:pairs]
    tail = norm.cdf(-math.sqrt(pairs / (pairs - 1)) * t.ppf(0.975, pairs - 1))
    differences = [a - b for a, b in zip(with_, without, strict=True)]
    theirs = bootstrap(
        (differences,),
        lambda x, axis: x.mean(axis=axis),
        confidence_level=1 - 2 * tail,
        method="percentile",
        n_resamples=200_000,
        rng=1,
    ).confidence_interval
    ours = paired_effect(with_, without)
    assert expanded_tail(pairs, confidence=0.95) == pytest.approx(tail)
    assert ours.mean == pytest.approx(sum(differences) / pairs)
    assert (ours.low, ours.high) == pytest.approx(theirs, abs=0.02)


def test_two_pairs_by_hand():
    # Four resamples of (1, 2) are equally likely: means 1, 1.5, 1.5, 2. The tail is far below a quarter.
    assert paired_effect([3.0, 4.0], [2.0, 2.0]) == Estimate(1.5, 1.0, 2.0, 2)
    assert paired_effect([3.0, 4.0], [2.0, 2.0]).is_clear
    assert not paired_effect([1.0, 4.0], [2.0, 2.0]).is_clear


def test_four_pairs_by_hand():
    # Of 256 resamples of (0, 0, 0, 4), 81 have no 4, 108 one, 54 two, 12 three, 1 four. At a confidence of
    # 0.5 the tail is Phi(-sqrt(4 / 3) * 0.7649) = 0.1886, the 48th of 256 from either end.
    found = paired_effect([0.0, 0.0, 0.0, 4.0], [0.0] * 4, confidence=0.5)
    assert (found.low, found.high) == (0.0, 2.0)


def test_equal_pairs_have_no_width_and_one_pair_none():
    assert paired_effect([1.0] * 5, [0.5] * 5) == Estimate(0.5, 0.5, 0.5, 5)
    alone = paired_effect([1.0], [0.5])
    assert (alone.mean, alone.pairs, alone.is_clear) == (0.5, 1, False)
    assert math.isnan(alone.low)


def test_pairs_of_swapped_sides_mirror_it():
    one, other = paired_effect(WITH, WITHOUT), paired_effect(WITHOUT, WITH)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=0.005)


@pytest.mark.parametrize(
    ("with_", "without", "message"),
    [
        ([], [], "must be pairs, got 0 and 0 values"),
        ([1.0], [1.0, 2.0], "must be pairs, got 1 and 2 values"),
        ([math.nan, 1.0], [1.0, 2.0], "must be finite"),
    ],
)
def test_what_are_no_pairs_is_refused(with_, without, message):
    with pytest.raises(ValueError, match=message):
        paired_effect(with_, without)
