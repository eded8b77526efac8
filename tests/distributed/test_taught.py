"""Projections of hidden features learn the same in several processes as in one."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.distributed.launch import launch
from tests.distributed.taught import fit
from tests.distributed.worlds import Shared


def test_projections_learn_the_same_in_several_processes(tmp_path: Path) -> None:
    launch("tests.distributed.taught", str(tmp_path))
    alone = fit(Shared, {})
    assert any("feature_projections" in name for name in alone)
    for world in ("DDP", "FSDP2"):
        found = torch.load(tmp_path / f"{world}.pt", weights_only=True)
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-10)
