from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.profilers import SimpleProfiler

from lightning_tricks import GradientClip, PreciseBatchNorm, WarmupCosine
from tests.toys import Loader, StopAfter, StopError, Toy, trainer

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
    trainer(technique, bare, profiler=profiler, num_sanity_val_steps=0, limit_val_batches=2).fit(
        Toy(), Loader(), Loader()
    )
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


def test_what_another_base_class_defines_is_called() -> None:
    class Counts(Callback):
        seen = 0

        def on_train_batch_end(self, *_: Any) -> None:
            self.seen += 1

    class Both(GradientClip, Counts):  # type: ignore[misc]  # final for type checkers alone
        def on_before_zero_grad(self, *_: Any) -> None:
            super().on_before_zero_grad(*_)

    both: Any = Both()
    trainer(both).fit(Toy(), Loader())
    assert both.seen == 15


def test_outside_a_run_all_can_be_called(tmp_path: Any) -> None:
    technique = GradientClip()
    trainer(technique).fit(Toy(), Loader())
    with pytest.raises(StopError):
        trainer(technique, StopAfter(3, tmp_path / "a.ckpt")).fit(Toy(), Loader())
    assert all(callable(getattr(technique, name)) for name in dir(Callback) if name.startswith("on_"))
    assert not any(name.startswith("on_") for name in vars(technique))
