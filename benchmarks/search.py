"""What twenty trials find on digits of whose training labels 30 % are drawn anew, sampler by sampler.

Two layers, 500 digits, 5 epochs; the rate, and three techniques with their recommended ranges. A search
measures by one split of the digits; what it found is measured again on five others, with other weights to
begin with, beside the default. Accuracies on digits with true labels, in percent, search by search.

    python -m benchmarks.search --searches 5
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from torch import nn

from lightning_tricks import EMAWeights, LabelSmoothing, Search, WarmupCosine
from lightning_tricks.recipes.digits import QUIET, DigitsClassifier, DigitsData
from lightning_tricks.study.trial import run_trial

TECHNIQUES = [EMAWeights(decay=0.9), LabelSmoothing(), WarmupCosine()]
SPACE = {
    "lr": {"low": 0.001, "high": 1.0, "log": True},
    "techniques": {
        "EMAWeights": {"optional": True, "decay": [0.8, 0.9, 0.95]},
        "LabelSmoothing": {"optional": True, "smoothing": {"low": 0.02, "high": 0.4, "log": True}},
        "WarmupCosine": {"optional": True, "final": [0.0, 0.01, 0.1]},
    },
}
OTHERS = range(1000, 1005)


def build(seed: int, lr: float = 0.05) -> tuple[DigitsClassifier, DigitsData, dict[str, Any]]:
    """Return what a trial trains."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    data = DigitsData(training=500, label_noise=0.3, seed=seed)
    return DigitsClassifier(network, lr=lr), data, {"max_epochs": 5, **QUIET}


def searched(sampler: str, seed: int) -> tuple[float, float, float]:
    """Return the gain of the best by the search's own split, then over the other splits; and its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        search = Search(
            build,
            SPACE,
            techniques=TECHNIQUES,
            metric="val_accuracy",
            mode="max",
            sampler=sampler,
            seed=seed,
            storage=Path(folder) / "study.journal",
        )
        begin = time.perf_counter()
        found = search.run()
        seconds = time.perf_counter() - begin
    assert found.best is not None
    assert found.gain is not None
    best, default = (search.point(trial) for trial in (found.best, found.trials[0]))
    gains = [accuracy(search, best, other) - accuracy(search, default, other) for other in OTHERS]
    return 100 * found.gain, statistics.mean(gains), seconds


def accuracy(search: Search, point: dict[str, Any], seed: int) -> float:
    """Return the accuracy after a training at ``point``."""
    build, techniques = search.parts(point)
    return 100 * run_trial(build, techniques, seed=seed, metric="val_accuracy").value


def main() -> None:
    """Print a line for each sampler."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--searches", type=int, default=5, help="of each sampler (default: 5)")
    parser.add_argument("--samplers", nargs="+", default=["tpe", "random", "gp", "evolutionary"])
    asked = parser.parse_args()
    for sampler in asked.samplers:
        own, others, seconds = zip(*(searched(sampler, seed) for seed in range(asked.searches)), strict=True)
        each = " ".join(f"{gain:+.1f}" for gain in others)
        means = [statistics.mean(values) for values in (own, others, seconds)]
        print(
            "{}: {:+.1f} by its own split, {:+.1f} over others, {:.1f} s".format(sampler, *means), f"({each})"
        )


if __name__ == "__main__":
    main()
