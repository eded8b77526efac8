"""Each of several processes gets its own random states, data and metrics back."""

from __future__ import annotations

from pathlib import Path

from tests.distributed.launch import launch


def test_each_process_goes_on_where_it_was(tmp_path: Path) -> None:
    launch("tests.lifecycle.over_processes", str(tmp_path))
