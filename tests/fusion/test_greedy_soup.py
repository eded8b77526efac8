"""Models are unit vectors here, so that the entries of a candidate tell which of them are in it."""

from __future__ import annotations

import math
import pickle

import pytest
import torch

from lightning_tricks.fusion.greedy_soup import GreedySoup, greedy_soup


def unit_models(count: int) -> list[dict[str, torch.Tensor]]:
    return [{"w": row, "n": torch.tensor(index)} for index, row in enumerate(torch.eye(count))]


class Table:
    """Looks the score of a soup up, and remembers what was asked."""

    def __init__(self, scores: dict[tuple[int, ...], float]) -> None:
        self.scores, self.asked = scores, []

    def __call__(self, model) -> float:
        members = tuple(model["w"].nonzero().flatten().tolist())
        assert model["w"].sum().item() == pytest.approx(1.0)
        self.asked.append(members)
        return self.scores[members]


def test_hand_worked_soup():
    # Best first: 1 (0.9), 2 (0.8), 0 (0.7). 1 + 2 is better, and 0 spoils it.
    table = Table({(0,): 0.7, (1,): 0.9, (2,): 0.8, (1, 2): 0.95, (0, 1, 2): 0.94})
    soup = greedy_soup(unit_models(3), table)
    assert soup["w"].tolist() == [0.0, 0.5, 0.5]
    assert table.asked == [(0,), (1,), (2,), (1, 2), (0, 1, 2)]


def test_a_model_that_does_not_lower_the_metric_joins():
    soup = greedy_soup(unit_models(2), Table({(0,): 0.5, (1,): 0.4, (0, 1): 0.5}))
    assert soup["w"].tolist() == [0.5, 0.5]


def test_a_refused_model_does_not_keep_the_next_out():
    table = Table({(0,): 3.0, (1,): 2.0, (2,): 1.0, (0, 1): 2.9, (0, 2): 3.1})
    assert greedy_soup(unit_models(3), table)["w"].tolist() == [0.5, 0.0, 0.5]


def test_the_best_alone_comes_back_to_the_bit():
    models = [{"w": torch.randn(9)} for _ in range(3)]
    best = models[1]["w"]
    soup = greedy_soup(models, lambda model: -(model["w"] - best).square().sum().item())
    assert torch.equal(soup["w"], best)


def test_of_equals_the_earlier_comes_first():
    table = Table({(0,): 1.0, (1,): 1.0, (0, 1): 0.0})
    assert greedy_soup(unit_models(2), table)["w"].tolist() == [1.0, 0.0]


def test_counters_come_from_the_latest_model_of_the_soup():
    table = Table({(0,): 1.0, (1,): 2.0, (2,): 3.0, (1, 2): 4.0, (0, 1, 2): 4.0})
    assert greedy_soup(unit_models(3), table)["n"].item() == 2


def test_nan_is_the_worst_metric():
    table = Table({(0,): math.nan, (1,): 1.0, (0, 1): math.nan})
    assert greedy_soup(unit_models(2), table)["w"].tolist() == [0.0, 1.0]


def test_one_model_needs_one_evaluation():
    table = Table({(0,): 0.1})
    assert greedy_soup(unit_models(1), table)["w"].tolist() == [1.0]
    assert table.asked == [(0,)]


def test_models_that_do_not_fit_are_refused_before_anything_is_evaluated():
    table = Table({})
    with pytest.raises(ValueError, match="n must be in every model"):
        greedy_soup([*unit_models(2), {"x": torch.zeros(1)}], table)
    with pytest.raises(ValueError, match="at least one model"):
        greedy_soup([], table)
    assert table.asked == []


def test_policy():
    table = Table({(0,): 0.0, (1,): 1.0, (0, 1): 2.0})
    assert GreedySoup().fuse(unit_models(2), table)["w"].tolist() == [0.5, 0.5]
    assert GreedySoup("acc", "max").objective == ("acc", "max")
    assert GreedySoup().objective == (None, None)
    policy = GreedySoup("acc", mode="max")
    assert eval(repr(policy)) == pickle.loads(pickle.dumps(policy)) == policy
    with pytest.raises(ValueError, match="evaluate must be given for a greedy soup, got None"):
        GreedySoup().fuse(unit_models(2))
    with pytest.raises(ValueError, match="mode must be one of 'min', 'max', got 'maximum'"):
        GreedySoup("acc", mode="maximum")
