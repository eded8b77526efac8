"""What a search refuses, before any trial."""

from __future__ import annotations

import sys

import pytest

from lightning_tricks import GradientClip
from tests.study.bowl import SPACE, bowl, search


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"metric": "other", "mode": "min"},
            "metric must be 'val_loss', as the study 'search' was begun, got 'other'",
        ),
        ({"mode": "max"}, "mode must be 'min'"),
        ({"space": {**SPACE, "y": [0, 1]}}, "space.y must be '\\[0, 1, 2\\]', .* got '\\[0, 1\\]'"),
        ({"space": {"y": [0, 1, 2]}}, "space.x.high must be 10.0, .* got 'not given'"),
        ({"sampler": "random"}, "sampler must be 'tpe'"),
        ({"seed": 3}, "seed must be 0"),
        ({"build": lambda seed, x=0.0, y=1: bowl(seed, x, y, epochs=3)}, "trainer.max_epochs must be 2"),
    ],
)
def test_another_search_is_refused_by_name(options, message, tmp_path):
    search(tmp_path).queue().close()
    with pytest.raises(ValueError, match=message):
        search(tmp_path, **options).queue()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": {"z": [1, 2]}}, "settings of build with a default must be one of 'x', 'y', .* got 'z'"),
        ({"space": {"x": [1.0, 2.0]}}, "x must be able to stay 0.0 as it is configured"),
        ({"space": {"x": {"low": 1.0, "high": 2.0}}}, "x must be able to stay 0.0 as it is configured"),
        ({"space": {"techniques": {"EMAWeight": {"optional": True}}}}, "did you mean 'EMAWeights'"),
        ({"space": {"techniques": {"EMAWeights": {"decay": [0.5, 0.9]}}}}, "EMAWeights must be optional"),
        (
            {"space": {"techniques": {"EMAWeights": {"optional": True, "decay": [0.5, 1.5]}}}},
            "EMAWeights.decay must be able to be 1.5 in the space: .*decay must",
        ),
        (
            {
                "space": {"techniques": {"clip": {"max_nrom": [1.0]}}},
                "techniques": {"clip": GradientClip()},
            },
            "did you mean 'max_norm'",
        ),
        ({"space": None}, "space must be given"),
        ({"sampler": "grid"}, "x must be a list of choices, or have a step, to try all values"),
        ({"sampler": "tree"}, "sampler must be one of"),
        ({"pruner": "hyperband"}, "pruner must be one of 'median', 'none'"),
        ({"trials": 0}, "trials must be at least 1"),
        ({"folds": 1}, "folds must be at least 2"),
        ({"timeout": 0.0}, "timeout must lie in"),
        ({"mode": "less"}, "mode must be one of"),
        ({"build": 3}, "build must be a Project or a function of a seed, got 3"),
    ],
)
def test_wrong_arguments_are_told(options, message, tmp_path):
    with pytest.raises((TypeError, ValueError), match=message):
        search(tmp_path, **options)


def test_a_package_that_a_sampler_needs_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "lightning_tricks\[study\]"'):
        search(tmp_path, sampler="gp")


def test_a_default_that_cannot_be_trained_leaves_no_study(tmp_path):
    def broken(seed, x=0.0):
        return bowl(seed, x=x) if x else 1 / 0

    with pytest.raises(ZeroDivisionError):
        search(tmp_path, {"x": [0.0, 1.0]}, broken)._settings()
    for options, message in (
        ({"build": broken, "space": {"x": [0.0, 1.0]}}, "must run as configured to be searched: ZeroDiv"),
        ({"metric": "vall_loss"}, "did you mean 'val_loss'"),
    ):
        with pytest.raises(ValueError, match=message):
            search(tmp_path, **options).run()
    assert not list(tmp_path.iterdir())
