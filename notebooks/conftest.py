"""With ``--short``, notebooks train on two batches of an epoch: that they run is tested, and no more."""

from collections.abc import Iterator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if item.config.getoption("--short", default=False):  # which the tests bring
            for part, batches in {"TRAIN": "2", "VAL": "1"}.items():  # for Trainers that are told no other
                patch.setenv(f"PL_TRAINER_LIMIT_{part}_BATCHES", batches)
        return (yield)
