"""Fusion in two processes, which hold copies or parts of the weights, is that in one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_tricks.core.collect import EverySteps
from lightning_tricks.fusion.fisher import FisherWeighted
from lightning_tricks.fusion.fusion import WeightFusion
from lightning_tricks.fusion.greedy_soup import GreedySoup
from lightning_tricks.fusion.learned_soup import LearnedSoup
from lightning_tricks.fusion.reg_mean import RegMean
from tests.distributed.launch import launch
from tests.distributed.worlds import Part, Shared
from tests.fusion.over_processes import all_at_once
from tests.fusion.runs import always
from tests.toys import assert_equal, trainer, weights


@pytest.mark.parametrize(
    "world",
    [
        "DDP",
        *(
            pytest.param(w, marks=pytest.mark.slow)
            for w in ("FSDP1", "FSDP2", "FSDP2, distributed checkpoints")
        ),
    ],
)
def test_fusion_over_processes_is_that_of_one(world: str, tmp_path: Path) -> None:
    launch("tests.fusion.over_processes", world, str(tmp_path))
    fused = tmp_path / "average" / "checkpoints" / "fused.ckpt"
    again = Shared.load_from_checkpoint(fused)
    assert_equal(weights(again), dict(torch.load(fused, weights_only=True)["state_dict"]))
    module = Shared()
    fusion = WeightFusion(method=GreedySoup(), collect=EverySteps(3, k=4), monitor="val_loss", mode="min")
    runner = trainer(fusion, default_root_dir=tmp_path)
    runner.fit(module, Part(), Part(2, seed=9, fixed=True))
    together = torch.load(tmp_path / "greedy" / "greedy.pt", weights_only=True)
    torch.testing.assert_close(together, weights(module), rtol=0, atol=1e-10)
    runner = trainer(all_at_once(tmp_path / "base.ckpt"), default_root_dir=tmp_path / "one")
    runner.fit(Shared(), Part(), Part(2, seed=9, fixed=True))
    paths = [tmp_path / name / "checkpoints" / "fused.ckpt" for name in ("one", "over_a_base")]
    one, two = [torch.load(path, weights_only=True)["weight_fusion"]["curve"] for path in paths]
    assert one["values"] == pytest.approx(two["values"])
    for method in (RegMean(), FisherWeighted(), LearnedSoup(per="layer")) if world == "DDP" else ():
        module = Shared()
        fusion = always(method=method, collect=EverySteps(3, k=2))
        trainer(fusion, default_root_dir=tmp_path / "one").fit(module, Part(), Part(2, seed=9, fixed=True))
        together = torch.load(tmp_path / f"{type(method).__name__}.pt", weights_only=True)
        near = 1e-6 if isinstance(method, LearnedSoup) else 1e-10  # a search may end a step elsewhere
        torch.testing.assert_close(together, weights(module), rtol=0, atol=near)
