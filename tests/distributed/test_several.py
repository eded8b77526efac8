"""Several backward passes per forward pass over processes."""

from __future__ import annotations

from pathlib import Path

from tests.distributed.launch import launch


def test_buffers_are_those_of_a_plain_run_in_each_process(tmp_path: Path) -> None:
    launch("tests.distributed.several", str(tmp_path))
