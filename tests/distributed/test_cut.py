"""Units whose entries lie in several processes are treated as whole ones."""

from tests.distributed.launch import launch


def test_units_are_those_of_the_whole_weights() -> None:
    launch("tests.distributed.cut")
