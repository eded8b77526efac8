"""What every test shares."""

import logging
from collections.abc import Iterator

import lightning.pytorch  # noqa: F401  # sets its own level when it is imported
import pytest
import torch

# Lightning's tips and device tables would bury what a failing test has to say.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


@pytest.fixture(autouse=True)
def _random_state() -> Iterator[None]:
    """Start every test from the same random state, so that one cannot depend on another."""
    torch.manual_seed(0)
    yield
