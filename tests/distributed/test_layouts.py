"""A part of a weight and the whole weight are one another's, in every process."""

from pathlib import Path

import pytest

from tests.distributed.launch import launch


@pytest.mark.parametrize("world", ["FSDP1", "FSDP2"])
def test_a_part_and_the_whole_are_one_anothers(world: str, tmp_path: Path) -> None:
    launch("tests.distributed.layouts", world, str(tmp_path))
