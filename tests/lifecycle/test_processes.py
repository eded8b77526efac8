"""What the first process does for all; that others get its answer is shown where there are others."""

from __future__ import annotations

import pytest

from lightning_tricks.lifecycle.processes import in_first
from tests.toys import trainer


def test_alone_it_is_a_call() -> None:
    given = object()
    assert in_first(trainer(), lambda: given) is given


def test_its_error_is_raised_as_it_is() -> None:
    error = OSError(28, "No space left on device")

    def work() -> None:
        raise error

    with pytest.raises(OSError, match="No space left") as caught:
        in_first(trainer(), work)
    assert caught.value is error
    assert [entry.name for entry in caught.traceback][-1] == "work"
