"""ProgressiveUnfreeze across interruptions and in every regime: equal to the bit, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy

from lightning_tricks import WarmupCosine
from lightning_tricks.network.openings import Plateau
from lightning_tricks.network.unfreeze import ProgressiveUnfreeze
from tests.network.deep import STAGES, Deep, Watch, fit
from tests.toys import (
    Compiled,
    Loader,
    StopAfter,
    StopError,
    Toy,
    TwoOptimizers,
    assert_equal,
    scaler_plugin,
    weights,
)


def state(runner: Any, path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds of weights, optimizers, schedulers and techniques."""
    runner.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    return {key: checkpoint[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks")}


def stopped(path: Path, batches: int, kind: Any, *techniques: Any, **settings: Any) -> Path:
    """Train ``batches`` batches, and return the checkpoint of the last."""
    with pytest.raises(StopError):
        fit(kind(), *techniques, StopAfter(batches, path / "stop.ckpt"), **settings)
    return path / "stop.ckpt"


class Scheduled(Deep):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=16)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


RUNS = {
    "epochs": (Deep, lambda: [ProgressiveUnfreeze(stages=STAGES)]),
    "steps": (Deep, lambda: [ProgressiveUnfreeze(stages=STAGES, at=4, lr_factor=0.5)]),
    "shares": (Deep, lambda: [ProgressiveUnfreeze(stages=STAGES, at="30%", norm_stats="train")]),
    "warmup": (Deep, lambda: [WarmupCosine(warmup="20%"), ProgressiveUnfreeze(stages=STAGES, at=[3, 7])]),
    "scheduler": (Scheduled, lambda: [ProgressiveUnfreeze(stages=STAGES, lr_factor=1)]),
}


@pytest.mark.parametrize("run", RUNS)
def test_resumed_at_every_batch(run, tmp_path):
    kind, techniques = RUNS[run]
    whole_watch = Watch()
    whole = state(fit(kind(), *techniques(), whole_watch), tmp_path / "whole.ckpt")
    for stop in range(1, 15):
        saved = stopped(tmp_path, stop, kind, *techniques())
        watch = Watch()
        runner = fit(kind(), *techniques(), watch, ckpt_path=saved)
        assert watch.open == whole_watch.open[stop:]
        assert watch.modes == whole_watch.modes[stop:]
        assert_equal(whole, state(runner, tmp_path / "parts.ckpt"))


def test_resumed_after_the_opening_the_body_still_learns_21901(tmp_path):
    saved = stopped(tmp_path, 8, Toy, ProgressiveUnfreeze(stages=["head", "body"]))
    watch = Watch()
    fit(Toy(), ProgressiveUnfreeze(stages=["head", "body"]), watch, ckpt_path=saved)
    assert watch.open == ["hb"] * 7
    assert all(watch.moved(batch) == {"h", "b"} for batch in range(7))


def test_resumed_at_the_last_batch_before_the_opening_it_still_comes(tmp_path):
    saved = stopped(tmp_path, 5, Toy, ProgressiveUnfreeze(stages=["head", "body"]))
    watch = Watch()
    fit(Toy(), ProgressiveUnfreeze(stages=["head", "body"]), watch, ckpt_path=saved)
    assert watch.open == ["hb"] * 10


@pytest.mark.parametrize(("every", "patience"), [(2, 2), (5, 1)])
def test_resumed_after_a_validation_a_stalled_metric_is_remembered(every, patience, tmp_path):
    def run(folder, **settings):
        stall = Plateau("val_loss", patience=patience, min_delta=10.0)  # only the first value improves
        unfreeze, watch = ProgressiveUnfreeze(stages=STAGES, at=stall), Watch()
        keep = ModelCheckpoint(
            folder, "{step}", save_top_k=-1, monitor="val_loss", save_on_train_epoch_end=False
        )
        runner = fit(Deep(), unfreeze, watch, keep, val_check_interval=every, max_epochs=4, **settings)
        final = state(runner, tmp_path / "end.ckpt")
        final["callbacks"] = {"unfreeze": final["callbacks"]["ProgressiveUnfreeze"]}
        return watch.open, final

    opened, whole = run(tmp_path / "whole")
    assert (
        opened == {2: "h " * 7 + "hm " * 5 + "hmb " * 8, 5: "h " * 10 + "hm " * 5 + "hmb " * 5}[every].split()
    )
    saved = sorted((tmp_path / "whole").iterdir(), key=lambda path: int(path.stem[5:]))
    assert len(saved) == 4 * (5 // every)
    for path in saved[:-1]:
        rest, parts = run(tmp_path / "whole", ckpt_path=path)
        assert rest == opened[int(path.stem[5:]) :]
        assert_equal(whole, parts)


def test_a_changed_moment_never_closes_a_stage_again(tmp_path):
    saved = stopped(tmp_path, 3, Deep, ProgressiveUnfreeze(stages=STAGES, at=[1, 10]))
    watch = Watch()
    with pytest.warns(UserWarning, match=r"changed settings: at \[1, 10\] -> \[5, 6\]"):
        fit(Deep(), ProgressiveUnfreeze(stages=STAGES, at=[5, 6]), watch, ckpt_path=saved)
    assert watch.open == ["hm"] * 3 + ["hmb"] * 9


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({}, {"lr_factor": 0.5}, "lr_factor must be that of the checkpoint, .* 0.384.*; got 0.5"),
        ({}, {"lr_factor": 1}, "lr_factor must be that of the checkpoint, .* 0.384.*; got 1"),
        (
            {},
            {"stages": ["head", "body", "mid"]},
            r"stages\[1\] held 'mid.0.weight', .*; got 'body.0.weight'",
        ),
        ({}, {"stages": ["*"]}, r"stages\[0\] held 'head.weight', .*; got 'body.0.weight'"),
    ],
)
def test_a_checkpoint_with_other_groups_is_refused_by_name(before, after, message, tmp_path):
    saved = stopped(tmp_path, 8, Deep, ProgressiveUnfreeze(**{"stages": STAGES, **before}))
    module = Deep()
    with pytest.raises(ValueError, match=message):
        fit(module, ProgressiveUnfreeze(**{"stages": STAGES, **after}), ckpt_path=saved)
    assert all(p.requires_grad for p in module.parameters())


def test_it_may_join_a_run_that_was_begun_without_it(tmp_path):
    saved = stopped(tmp_path, 8, Deep)
    expected = r"lr_factor must be 1, and warmup 0, to go on from .* of \[\[8\]\] .* \[\[2, 2, 4\]\]"
    with pytest.raises(ValueError, match=expected):
        fit(Deep(), ProgressiveUnfreeze(stages=STAGES), ckpt_path=saved)
    watch = Watch()
    fit(Deep(), ProgressiveUnfreeze(stages=STAGES, lr_factor=1), watch, ckpt_path=saved)
    assert watch.open == ["hm"] * 2 + ["hmb"] * 5


class LateLoading(SingleDeviceStrategy):
    """Loads checkpoints after ``on_fit_start``, as strategies that shard do."""

    restore_checkpoint_after_setup = True


def test_checkpoints_that_load_late(tmp_path):
    def run(factor, late):
        watch = Watch()
        settings = {"strategy": LateLoading(torch.device("cpu"))} if late else {}
        unfreeze = ProgressiveUnfreeze(stages=STAGES, at=stall, lr_factor=factor)
        fit(Deep(), unfreeze, watch, ckpt_path=saved, max_epochs=4, **settings)
        return watch.open

    stall = Plateau("val_loss", patience=1, min_delta=10.0)
    saved = stopped(tmp_path, 14, Deep, ProgressiveUnfreeze(stages=STAGES, at=stall), max_epochs=4)
    for late in (False, True):
        assert run(1 / 2.6, late) == ["hm"] + ["hmb"] * 5
        with pytest.raises(ValueError, match="lr_factor must be that of the checkpoint"):
            run(0.5, late)


def test_what_learns_is_settled_when_fit_starts(tmp_path):
    class Count(Callback):
        def on_fit_start(self, trainer, pl_module):
            self.trainable = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)

    first, resumed = Count(), Count()
    saved = stopped(tmp_path, 8, Deep, ProgressiveUnfreeze(stages=STAGES), first)
    fit(Deep(), ProgressiveUnfreeze(stages=STAGES), resumed, ckpt_path=saved)
    assert (first.trainable, resumed.trainable) == (27, 99)


def test_a_checkpoint_counts_for_one_fit_only(tmp_path):
    stall = Plateau("val_loss", patience=1, min_delta=10.0)
    saved = stopped(tmp_path, 3, Deep, ProgressiveUnfreeze(stages=STAGES, at=stall), max_epochs=4)
    module, watch = Deep(), Watch()
    runner = fit(module, ProgressiveUnfreeze(stages=STAGES, at=stall), watch, ckpt_path=saved, max_epochs=4)
    runner.fit_loop.max_epochs = 5
    runner.fit(module, Loader(), Loader(2))
    assert watch.open[-6:] == ["hmb"] * 6


class SlowBody(TwoOptimizers):
    """Steps the body on every second batch only."""

    def training_step(self, batch, batch_idx):
        torch.manual_seed(1000 * self.current_epoch + batch_idx)
        body, head = self.optimizers()
        head.zero_grad()
        self.manual_backward(self.loss(batch))
        head.step()
        if batch_idx % 2:
            body.step()
            body.zero_grad()


REGIMES = {
    "bf16-mixed": (Toy, lambda: {"precision": "bf16-mixed"}),
    "16-mixed": (Toy, lambda: {"plugins": [scaler_plugin()]}),
    "16-mixed, overflow": (Toy, lambda: {"plugins": [scaler_plugin(2.0**40)]}),
    "accumulation": (Toy, lambda: {"accumulate_grad_batches": 2}),
    "manual": (TwoOptimizers, dict),
    "manual, uneven": (SlowBody, dict),
    "compiled": (Compiled, dict),
    "fused": (lambda: Toy(fused=True), dict),
}


@pytest.mark.parametrize("at", ["1 epoch", 4])
@pytest.mark.parametrize("regime", REGIMES)
def test_regimes(regime, at, tmp_path):
    kind, settings = REGIMES[regime]
    watch, plain = Watch(), Watch()
    fit(kind(), plain, **settings())
    module = kind()
    whole = fit(module, ProgressiveUnfreeze(stages=["head", "body"], at=at), watch, **settings())
    opening = watch.open.index("hb")
    assert opening == {"1 epoch": 5, 4: 7 if regime == "accumulation" else 4}[at]
    body = {key: value for key, value in watch.before[0].items() if key.startswith("body")}
    for after in watch.after[:opening]:
        assert_equal(body, {key: after[key] for key in body})
    assert watch.moved(opening + 2) >= {"b"}
    for stop in (opening, 9):  # just before it, and after; not within an accumulation
        saved = stopped(
            tmp_path, stop, kind, ProgressiveUnfreeze(stages=["head", "body"], at=at), **settings()
        )
        parts = kind()
        runner = fit(
            parts, ProgressiveUnfreeze(stages=["head", "body"], at=at), ckpt_path=saved, **settings()
        )
        assert_equal(weights(module), weights(parts))
        assert_equal(state(whole, tmp_path / "a.ckpt"), state(runner, tmp_path / "b.ckpt"))
