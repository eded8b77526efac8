"""The ways to train in which every technique is right, or refuses before the first batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from tests.toys import Compiled, Toy, TwoOptimizers, scaler_plugin


@dataclass(frozen=True)
class Regime:
    """A module and the settings of a Trainer.

    Attributes:
        module: Builds the module.
        settings: Builds what the Trainer is given.
    """

    module: Callable[[], Toy] = Toy
    settings: Callable[[], Mapping[str, Any]] = field(default=dict)


REGIMES: dict[str, Regime] = {
    "fp32": Regime(),
    "bf16-mixed": Regime(settings=lambda: {"precision": "bf16-mixed"}),
    "16-mixed": Regime(settings=lambda: {"plugins": [scaler_plugin()]}),
    "bf16-true": Regime(settings=lambda: {"precision": "bf16-true"}),
    "accumulation": Regime(settings=lambda: {"accumulate_grad_batches": 2}),
    "manual": Regime(module=TwoOptimizers),
    "fused": Regime(module=lambda: Toy(fused=True)),
    "fused, 16-mixed": Regime(
        module=lambda: Toy(fused=True), settings=lambda: {"plugins": [scaler_plugin()]}
    ),
    "bf16-mixed, accumulation": Regime(
        settings=lambda: {"precision": "bf16-mixed", "accumulate_grad_batches": 2}
    ),
    "bf16-true, accumulation": Regime(
        settings=lambda: {"precision": "bf16-true", "accumulate_grad_batches": 2}
    ),
    "16-mixed, accumulation": Regime(
        settings=lambda: {"plugins": [scaler_plugin()], "accumulate_grad_batches": 2}
    ),
    "compiled": Regime(module=Compiled),
}


def _on_gpu(regime: Regime) -> Regime:
    def settings() -> Mapping[str, Any]:
        plugins = {"plugins": [scaler_plugin(device="cuda")]} if "plugins" in regime.settings() else {}
        return {**regime.settings(), **plugins, "accelerator": "gpu"}

    return replace(regime, settings=settings)


ON_GPU: dict[str, Regime] = {f"{name} on a GPU": _on_gpu(regime) for name, regime in REGIMES.items()}
needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
