"""A run is warned once of each thing, and the next run of the process again."""

from __future__ import annotations

import warnings

import pytest

from lightning_tricks.lifecycle.notice import warn
from lightning_tricks.lifecycle.technique import Technique
from tests.toys import Loader, Toy, trainer


class Warns(Technique):
    """Warns after every batch."""

    def claims(self) -> list[object]:
        return []

    def on_train_batch_end(self, trainer, *_) -> None:
        warn(trainer, "not good")


@pytest.mark.parametrize("again", [False, True])
def test_each_run_is_warned_once(again):
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        warnings.simplefilter("default")  # as Python has it, and pytest has not
        first = trainer(Warns(), max_epochs=1)
        first.fit(Toy(), Loader())
        second = first if again else trainer(Warns(), max_epochs=1)
        second.fit_loop.max_epochs = 2 if again else 1
        second.fit(Toy(), Loader())
    found = [each for each in caught if str(each.message) == "not good"]
    assert len(found) == 2
    assert {each.filename for each in found} == {__file__}
