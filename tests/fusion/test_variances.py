"""A variance of BatchNorm that a method would put below 0, where evaluation gives NaN, is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_tricks import Average, Layerwise, TaskArithmetic, fuse
from lightning_tricks.fusion.methods import FusionMethod


@dataclass(frozen=True)
class Beyond(FusionMethod):
    """What lies as far beyond the last model as that from the first, of models as wholes."""

    def fuse(self, models: Sequence[Any], evaluate: Any = None) -> dict[str, Tensor]:
        return {name: 2 * value - models[0][name] for name, value in models[-1].items()}


@pytest.mark.parametrize("method", [TaskArithmetic(scale=2.0), Beyond()], ids=repr)
def test_a_variance_below_0_is_refused_with_the_remedy(method: FusionMethod, tmp_path: Path) -> None:
    def model(*variances: float) -> dict[str, Tensor]:
        return {"w": torch.tensor([variances[0]]), "norm.running_var": torch.tensor(variances)}

    models, path = [model(3.0, 1.0), model(1.0, 1.0)], tmp_path / "fused.ckpt"
    with pytest.raises(
        ValueError, match=r"norm\.running_var must not fall below 0.*reaches -1 by.*Layerwise"
    ):
        fuse(models, method, path)
    assert not [*tmp_path.iterdir()]
    fused = fuse([model(3.0, -1.0), model(1.0, -1.0)], method)  # they were so before
    assert isinstance(fused, dict) and fused["norm.running_var"].tolist() == [-1.0, -1.0]
    averaged = fuse(models, Layerwise({"*running_var": Average(), "*": TaskArithmetic(scale=2.0)}))
    assert isinstance(averaged, dict) and averaged["norm.running_var"].tolist() == [2.0, 1.0]
    assert averaged["w"].tolist() == [-1.0]
