"""With ``--short``, notebooks train on a few batches of an epoch: that they run is tested, and no more."""

from collections.abc import Iterator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if item.config.getoption("--short"):
            patch.setenv("PL_TRAINER_LIMIT_TRAIN_BATCHES", "3")  # Lightning's own default, if it is set
        return (yield)
