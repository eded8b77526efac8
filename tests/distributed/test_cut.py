"""Units whose entries lie in several processes are treated as whole ones; noise differs between parts."""

from pathlib import Path

from tests.distributed.launch import launch


def test_units_are_those_of_the_whole_weights(tmp_path: Path) -> None:
    launch("tests.distributed.cut", str(tmp_path))
