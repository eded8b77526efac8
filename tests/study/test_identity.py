"""A study goes on only with what it was begun with: the network, its settings and its code."""

from __future__ import annotations

from functools import partial

import pytest
from torch import nn

from lightning_tricks import Ablation, EMAWeights, Search
from lightning_tricks.study.identity import identity
from lightning_tricks.study.trial import Setup
from tests.study.small import QUIET, build
from tests.toys import Loader, Toy


class Wide(Toy):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.head = nn.Sequential(activation, self.head)


def factory(activation):
    def made(seed):
        return Wide(activation), (Loader(3, seed=seed), Loader(2, seed=99, fixed=True)), dict(QUIET)

    return made


def told(function):
    return identity(function, Setup.of(function(0)))


def test_the_same_twice_is_the_same():
    assert told(build) == told(build) == told(partial(build))
    assert told(factory(nn.GELU())) == told(factory(nn.GELU()))


def test_another_layer_without_weights_is_another():
    one, other = told(factory(nn.GELU())), told(factory(nn.SiLU()))
    assert one["what is trained"].pop("layers") != other["what is trained"].pop("layers")
    assert one == other


def test_comments_are_no_code_and_numbers_are(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    sums = []
    for index, line in enumerate(("a = 1", "a = 1  # said", "a = 2")):
        (tmp_path / f"code_{index}.py").write_text(f"def build(seed):\n    {line}\n    return seed + a\n")
        function = __import__(f"code_{index}").build
        sums.append(identity(function, Setup.of(build(0)))["what is trained"]["code of build"])
    assert sums[0] == sums[1] != sums[2]


@pytest.mark.parametrize(
    "study",
    [
        lambda function, path: Ablation(function, [EMAWeights(decay=0.9)], seeds=1, storage=path),
        lambda function, path: Search(
            function, {"techniques": {"EMAWeights": {"optional": True}}}, trials=1, storage=path
        ),
    ],
)
def test_another_network_gets_no_old_results(study, tmp_path):
    study(factory(nn.GELU()), tmp_path / "study.journal").run()
    with pytest.raises(
        ValueError, match="what is trained.layers must be '.*', as the study .* was begun, got"
    ):
        study(factory(nn.SiLU()), tmp_path / "study.journal").run()
