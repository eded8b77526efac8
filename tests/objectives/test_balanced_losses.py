"""The mixin: in every regime, when resumed, in evaluation, and with what is wrong."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch._functorch import config as functorch_config

import lightning_tricks as lt
from lightning_tricks import BalancedLosses, OptimizerMixin, OptimizerSettings
from lightning_tricks.objectives.loss_balance import LossBalance
from tests.contract.mixing import two_tasks
from tests.contract.regimes import REGIMES
from tests.host_reads import HostReads
from tests.toys import (
    Compiled,
    Loader,
    StopAfter,
    StopError,
    Toy,
    TwoOptimizers,
    assert_equal,
    trainer,
    weights,
)

KINDS = {"fit": "classification", "size": "regression"}
STRATEGIES = {
    "fixed": lt.FixedWeights({"fit": "linear(to=0.5)", "size": 0.1}),
    "magnitude": lt.MagnitudeBalance(decay=0.5),
    "uncertainty": lt.UncertaintyBalance(KINDS),
    "uncertainty from 0": lt.UncertaintyBalance(KINDS, start=0.0),
    "grad norm": lt.GradNorm(("body", "body.*")),
    "dynamic": lt.DynamicWeightAverage(),
    "random": lt.RandomWeights(seed=3),
}


def built(strategy: LossBalance, kind: type[Toy] = Toy, **own: Any) -> Any:
    """Return a toy with two losses."""
    module = type("Balanced", (BalancedLosses, kind), {**two_tasks(strategy), **own})()
    module.options |= {"weight_decay": 0.0}
    return module


@pytest.fixture(autouse=True)
def _graphs_of_compiled_code_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functorch_config, "donated_buffer", False)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("regime", ["fp32", "16-mixed, accumulation", "bf16-true", "manual", "compiled"])
def test_a_resumed_run_equals_an_uninterrupted_one(strategy: str, regime: str, tmp_path: Path) -> None:
    def run(*callbacks: Callback, **options: Any) -> Toy:
        module = built(STRATEGIES[strategy], type(REGIMES[regime].module()))
        runner = trainer(*callbacks, **REGIMES[regime].settings())
        runner.fit(module, Loader(), Loader(2, seed=9, fixed=True), **options)
        return module

    whole = run()
    with pytest.raises(StopError):
        run(StopAfter(9, tmp_path / "a.ckpt"))
    parts = run(ckpt_path=tmp_path / "a.ckpt")
    assert_equal(weights(whole), weights(parts))
    assert_equal(whole._balancing.saved(), parts._balancing.saved())
    assert whole._balancing.steps == (8 if "accumulation" in regime else 14)
    if whole.loss_balance.learned:
        assert whole.loss_log_variances.any()
