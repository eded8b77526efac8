"""BatchNorm statistics over several processes are those of all their data, and the same in each."""

from pathlib import Path

import pytest

from tests.distributed.launch import launch


@pytest.mark.parametrize(
    "world", ["DDP", *(pytest.param(w, marks=pytest.mark.slow) for w in ("FSDP1", "FSDP2"))]
)
def test_statistics_are_those_of_all_processes(world: str, tmp_path: Path) -> None:
    launch("tests.distributed.normed", world, str(tmp_path))
