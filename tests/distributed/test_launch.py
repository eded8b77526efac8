"""What runs in several processes fails loudly, ends in time, and is forked from processes of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.launch import launch


def test_a_process_that_fails_is_shown() -> None:
    with pytest.raises(RuntimeError, match="no world of this name") as caught:
        launch("tests.distributed.launched", "fail")
    assert str(caught.value).count("ValueError: no world of this name") == 2


def test_a_warning_of_the_package_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="UserWarning: careful"):
        launch("tests.distributed.launched", "warn")


def test_processes_differ_where_they_should_and_share_no_state(tmp_path: Path) -> None:
    for name in ("first", "second"):
        launch("tests.distributed.launched", str(tmp_path / name))
    told = [(tmp_path / f"{name}{rank}").read_text() for name in ("first", "second") for rank in (0, 1)]
    assert len(set(told)) == 4  # draws without a seed
    orders = [each.split()[0] for each in told]
    assert orders[0] == orders[2] != orders[1] == orders[3]


def test_processes_that_do_not_end_are_ended() -> None:
    with pytest.raises(RuntimeError, match="did not end within 0.1 seconds"):
        launch("tests.distributed.launched", "wait", timeout=0.1)
