"""A frozen part keeps its bits over three epochs and a resumption, BatchNorm included, in every process."""

from pathlib import Path

import pytest

from tests.distributed.launch import launch


@pytest.mark.parametrize("world", ["DDP", "FSDP1", "FSDP2"])
def test_a_frozen_part_keeps_its_bits(world: str, tmp_path: Path) -> None:
    launch("tests.distributed.frozen", world, str(tmp_path))
