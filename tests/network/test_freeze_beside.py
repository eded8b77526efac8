"""A frozen part keeps its bits beside techniques that work on weights and gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_tricks.network.freeze import Freeze
from tests.contract.cases import CASES
from tests.contract.regimes import REGIMES
from tests.contract.test_laws import fit
from tests.network.deep import Watch


@pytest.mark.parametrize(
    "name", ["EMAWeights", "GradientNoise", "GradientSurgery", "NormPenalty", "SharpnessAware", "WeightDecay"]
)
def test_what_stops_on_the_way_keeps_its_bits(name: str, tmp_path: Path) -> None:
    case, watch = CASES[name], Watch()
    fit(REGIMES["fp32"], case.active(), Freeze(params="body", at=6), watch, adapt=case.adapt, root=tmp_path)
    for key, value in watch.after[5].items():
        assert torch.equal(value, watch.after[14][key]) == key.startswith("body."), key
