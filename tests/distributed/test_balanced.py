"""Weights of several losses are those of one process, and resume, over several processes."""

from pathlib import Path

import pytest
import torch

from tests.distributed.balanced import chosen
from tests.distributed.cells import BATCHES
from tests.distributed.launch import launch
from tests.distributed.worlds import WORLDS, Part
from tests.toys import trainer, weights


@pytest.mark.parametrize(
    "world",
    [
        "DDP, accumulation",
        *(
            pytest.param(w, marks=pytest.mark.slow)
            for w in ("DDP, manual", "FSDP1", "FSDP2, distributed checkpoints")
        ),
    ],
)
def test_weights_are_those_of_one_process(world: str, tmp_path: Path) -> None:
    launch("tests.distributed.balanced", world, str(tmp_path))
    for name, case in chosen(world).items():
        together = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        if name == "GradNorm" and WORLDS[world].sharded:
            assert together.startswith("GradNorm needs whole gradients in each process: use DDP, got ")
            continue
        alone = case.adapt(WORLDS[world].module())
        settings = {k: v for k, v in WORLDS[world].settings().items() if k != "plugins"}
        settings["default_root_dir"] = tmp_path / "alone"
        trainer(case.active(), **settings).fit(alone, Part(BATCHES))
        for key, value in weights(alone).items():
            torch.testing.assert_close(together[key], value, rtol=0, atol=1e-10)
