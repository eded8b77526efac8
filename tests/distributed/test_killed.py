"""A process that is lost takes no average with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.launch import launch


@pytest.mark.parametrize("world", ["DDP", "FSDP2"])
def test_averages_go_on_to_the_bit_in_new_processes(world: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="killed by its test"):
        launch("tests.distributed.killed", world, str(tmp_path), timeout=100)
    launch("tests.distributed.killed", world, str(tmp_path), timeout=100)
