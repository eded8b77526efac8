"""Twenty trials find something better than the default on real data."""

from __future__ import annotations

import pytest
from torch import nn

from lightning_tricks import EMAWeights, LabelSmoothing, Search
from lightning_tricks.recipes.digits import QUIET, DigitsClassifier, DigitsData
from lightning_tricks.study.trial import run_trial

SPACE = {
    "lr": {"low": 0.001, "high": 1.0, "log": True},
    "techniques": {
        "EMAWeights": {"optional": True, "decay": [0.5, 0.8, 0.9]},
        "LabelSmoothing": {"optional": True},
    },
}


def build(seed, lr=0.05):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    data = DigitsData(training=300, label_noise=0.3, seed=seed)
    return DigitsClassifier(network, lr=lr), data, {"max_epochs": 3, **QUIET}


@pytest.mark.slow
def test_twenty_trials_find_better_settings_than_the_default(tmp_path):
    search = Search(
        build,
        SPACE,
        techniques=[EMAWeights(decay=0.9), LabelSmoothing()],
        metric="val_accuracy",
        mode="max",
        storage=tmp_path / "study.journal",
    )
    found = search.run()
    assert len(found.trials) == 20
    assert found.gain > 0.05
    elsewhere = []  # on digits and from weights that it was not chosen by
    for trial in (found.default, found.best):
        made, techniques = search.parts(search.point(trial))
        elsewhere.append(run_trial(made, techniques, seed=7, metric="val_accuracy").value)
    assert elsewhere[1] > elsewhere[0] + 0.03
