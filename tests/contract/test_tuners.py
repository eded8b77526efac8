"""A search of Lightning's tuners before the run changes nothing of a technique, and is no checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.tuner import Tuner

from tests.contract.cases import Case
from tests.contract.test_laws import law
from tests.toys import Loader, Toy, assert_equal, trainer, weights


class Tuned(Toy):
    """Has a batch size, for which its loader does not care, and keeps its rate whatever a search found."""

    batch_size = 2
    lr = property(lambda self: 0.05, lambda self, value: None)

    def train_dataloader(self) -> Loader:
        return Loader()

    def val_dataloader(self) -> Loader:
        return Loader(2, seed=9, fixed=True)


def search(runner: Trainer, module: Tuned) -> None:
    Tuner(runner).lr_find(module, num_training=4)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*lr_find")
@pytest.mark.parametrize(
    ("finders", "before"),
    [
        (lambda: [LearningRateFinder(num_training_steps=4)], lambda *_: None),
        (lambda: [BatchSizeFinder(max_trials=1, steps_per_trial=1)], lambda *_: None),
        (list, search),
    ],
    ids=["LearningRateFinder", "BatchSizeFinder", "Tuner"],
)
@pytest.mark.sampled(3)
@law("quiet")
def test_a_search_before_the_run_leaves_no_trace_in_it(
    case: Case,
    finders: Callable[[], list[Callback]],
    before: Callable[[Trainer, Tuned], Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*callbacks: Callback, first: Callable[[Trainer, Tuned], Any] = lambda *_: None) -> Tuned:
        module = case.adapt(Tuned())
        runner = trainer(case.active(), *callbacks, default_root_dir=tmp_path)
        first(runner, module)
        runner.fit(module)
        return module

    plain, tuned = run(), run(*finders(), first=before)
    assert_equal(weights(plain), weights(tuned))
    assert "checkpoint" not in capsys.readouterr().out.replace("checkpoints/", "")
