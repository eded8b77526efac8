"""On a GPU, which need not wait for the host: a step of the techniques does not make it wait."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer import call

import lightning_tricks as lt
from tests.contract.regimes import needs_gpu
from tests.contract.test_together import five
from tests.toys import Loader, Toy, trainer

HOOKS = {
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
}


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where a hook of a step waits for the GPU, once the run has begun, is an error; returns the hooks."""
    run, seen = call._call_callback_hooks, []
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)

    def guard(runner: Trainer, hook: str, *args: Any, **options: Any) -> None:
        if hook not in HOOKS or runner.global_step < 2:
            return run(runner, hook, *args, **options)
        seen.append(hook)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return run(runner, hook, *args, **options)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(call, "_call_callback_hooks", guard)
    return seen


@pytest.mark.parametrize(
    ("fused", "non_finite", "accelerator"),
    [
        pytest.param(True, "skip", "gpu", marks=needs_gpu),
        pytest.param(False, "keep", "gpu", marks=needs_gpu),
        (True, "skip", "cpu"),  # tries the guard
    ],
)
def test_no_hook_waits_for_the_gpu_on_steps_that_do_not_log(
    fused: bool, non_finite: str, accelerator: str, guarded: list[str], tmp_path: Path
) -> None:
    clips = [
        lt.GradientClip(label=str(index), params=part, max_norm=limit, non_finite=non_finite)
        for index, (part, limit) in enumerate(
            [("body.0", 0.5), ("body.1", lt.Percentile()), ("head", lt.ZScore(warmup_steps=2))]
        )
    ]
    works = [lt.GradientCentralization(), lt.GradientNoise(), lt.AdaptiveGradientClip(), *clips]
    techniques = [*works, lt.Lookahead(k=2), *five(monitor=None)[1:]]
    runner = trainer(*techniques, accelerator=accelerator, log_every_n_steps=1000, default_root_dir=tmp_path)
    runner.fit(Toy(fused=fused), Loader(6))
    assert set(guarded) == HOOKS
