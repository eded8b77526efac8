from __future__ import annotations

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.profilers import SimpleProfiler

from lightning_tricks import GradientClip, PreciseBatchNorm, WarmupCosine
from tests.toys import Loader, Toy, trainer

START, END = "on_train_batch_start", "on_train_batch_end"


@pytest.mark.parametrize(
    ("technique", "hooks"),
    [
        (GradientClip(), {"on_before_optimizer_step"}),
        (WarmupCosine(), {START, END}),
        (PreciseBatchNorm(), set()),
    ],
)
def test_lightning_calls_no_hook_of_a_batch_in_which_a_technique_does_nothing(
    technique: Callback, hooks: set[str]
) -> None:
    profiler = SimpleProfiler()
    bare = Callback()
    trainer(technique, bare, profiler=profiler, limit_val_batches=2).fit(Toy(), Loader(), Loader())
    calls = {
        tuple(action.removeprefix("[Callback]").split("."))
        for action in profiler.recorded_durations
        if action.startswith("[Callback]")
    }
    called, others = ({name for who, name in calls if who == each.state_key} for each in (technique, bare))
    of_batches = {name for name in others if "_batch_" in name or "_before_" in name or "_after_" in name}
    assert {START, END, "on_after_backward", "on_validation_batch_end"} <= of_batches
    assert called & of_batches == hooks
    assert called - of_batches == others - of_batches
