from __future__ import annotations

import pytest
from lightning.pytorch.callbacks import EarlyStopping, ProgressBar, RichProgressBar, TQDMProgressBar

from lightning_tricks.lifecycle.evaluation import undisturbed
from tests.toys import Loader, Toy, trainer


@pytest.mark.parametrize("kind", [RichProgressBar, TQDMProgressBar])
def test_a_bar_that_draws_itself_still_finds_itself_but_shows_nothing(kind: type[ProgressBar]) -> None:
    bar, module = kind(), Toy()
    stopper = EarlyStopping("val_loss")
    runner = trainer(bar, stopper, enable_progress_bar=True, max_epochs=1)
    runner.fit(module, Loader(), Loader(2, fixed=True))
    with undisturbed(runner, module):
        assert runner.progress_bar_callback is bar
        assert not bar.is_enabled
        assert runner.callbacks == [bar]
    assert bar.is_enabled
    assert set(runner.callbacks) == {bar, stopper}
