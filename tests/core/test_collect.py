from __future__ import annotations

import pickle

import pytest

from lightning_tricks.core.collect import BestK, EverySteps, LastEpochs, SnapshotPolicy


def test_moments():
    run = {"position": 29, "epoch": 3, "validations": 7}
    assert LastEpochs(5).moments(**run) == 3
    assert EverySteps(10, k=2).moments(**run) == 2
    assert EverySteps(29, k=2).moments(**run) == 1
    assert BestK(2).moments(**run) == 7


def test_the_oldest_is_dropped_but_of_the_best_the_worst():
    scores = [0.5, 0.1, 0.9, 0.7]
    assert LastEpochs(3).surplus(scores) == EverySteps(1, 3).surplus(scores) == 0
    assert BestK(3).surplus(scores) == 1
    assert BestK(1).surplus([0.5, 0.4]) == 1


def test_of_equals_the_earlier_stays():
    assert BestK(2).surplus([0.5, 0.5, 0.9]) == 1
    assert BestK(2).surplus([0.5, 0.9, 0.5]) == 2


@pytest.mark.parametrize("policy", [LastEpochs(5), EverySteps(100, k=3), EverySteps(n=1, k=1), BestK(2)])
def test_policies_are_rebuilt(policy):
    assert eval(repr(policy)) == pickle.loads(pickle.dumps(policy)) == policy
    assert isinstance(policy, SnapshotPolicy)
    assert policy.monitored is isinstance(policy, BestK)


@pytest.mark.parametrize("build", [LastEpochs, BestK, lambda k: EverySteps(5, k), lambda n: EverySteps(n, 5)])
@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError), (True, TypeError)]
)
def test_counts_are_whole_and_at_least_1(build, value, error):
    with pytest.raises(error, match=rf"[kn] must be .*, got {value}"):
        build(value)
