"""BatchNorm statistics that are estimated for a mean of snapshots, beside those of the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

import lightning_tricks as lt
from tests.averaging.test_swa import Rates
from tests.averaging.watching import Watch, live_of
from tests.network.test_precise_batchnorm import Checks, Fixed, check
from tests.toys import Loader, StopAfter, StopError, Toy, assert_equal, trainer, weights

VALIDATION = Loader(2, seed=9, fixed=True)


def swa(**settings: Any) -> lt.SWAWeights:
    return lt.SWAWeights(**{"start": 3, "every": 2, "batches": 4, **settings})


class Passes(Toy):
    """Counts the training batches that were only looked at."""

    looks = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.looks += not self.training
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("settings", [{}, {"buffers": "average"}, {"dtype": "float64"}], ids=str)
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_they_are_the_means_wherever_it_is_seen_and_training_keeps_its_own(
    settings: dict[str, Any], precision: str, tmp_path: Path
) -> None:
    checks, watch, plain, ours = Checks(4), Watch(), Toy(), swa(**settings)
    checks = [] if precision == "bf16-true" else [checks]  # too coarse to compare
    saver = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1)
    module = Passes()
    runner = trainer(ours, *checks, watch, saver, precision=precision)
    runner.fit(module, Fixed(), VALIDATION)
    trainer(precision=precision).fit(plain, Fixed(), VALIDATION)
    assert module.looks == 3 * 4  # none at the end of fit, since nothing moved after the last validation
    assert_equal(live_of(ours, module), weights(plain))
    for epoch, seen in enumerate(watch.seen):
        path = tmp_path / f"step={5 * (epoch + 1)}.ckpt"
        assert_equal(lt.average_state(path), seen)
        assert_equal(lt.live_state(path), watch.steps[5 * (epoch + 1)])
    assert_equal(weights(module), watch.seen[-1])
    if checks:
        check(module, list(Fixed())[:4])


def test_between_two_validations_a_checkpoint_holds_those_of_the_last(tmp_path: Path) -> None:
    class Saves(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    watch = Watch()
    trainer(swa(), watch, Saves()).fit(Toy(), Fixed(), VALIDATION)
    for step, seen in ((6, watch.seen[0]), (8, watch.seen[0]), (12, watch.seen[1])):
        found = lt.average_state(tmp_path / f"{step}.ckpt")
        assert torch.equal(found["body.1.running_var"], seen["body.1.running_var"])
        live = lt.live_state(tmp_path / f"{step}.ckpt")
        assert_equal(live, watch.steps[step])


def test_without_validation_they_are_estimated_at_the_end() -> None:
    module, ours = Passes(), swa()
    trainer(ours).fit(module, Fixed())
    assert module.looks == 4
    check(module, list(Fixed())[:4])
    assert_equal(ours.average(), weights(module))


def test_a_mean_that_is_kept_apart_has_its_own_too() -> None:
    class Losses(Callback):
        def on_validation_end(self, trainer: Any, *_: Any) -> None:
            self.last = {name: float(value) for name, value in trainer.callback_metrics.items()}

    losses, alone, module = Losses(), Losses(), Toy()
    apart = swa(label="apart", evaluate=False, validate=True)
    trainer(lt.EMAWeights(decay=0.5), apart, losses).fit(module, Fixed(), VALIDATION)
    trainer(evaluated := swa(), alone).fit(other := Toy(), Fixed(), VALIDATION)
    assert losses.last["apart/swa_weights/val_loss"] == pytest.approx(alone.last["val_loss"])
    kept, held = apart.average(), evaluated.average()
    assert kept is not None and held is not None
    assert_equal(kept, held)
    assert_equal(kept, weights(other))


@pytest.mark.parametrize(
    ("hook", "count"),  # before start, while it anneals, at an epoch's end and after it; in a validation
    [("batch", 2), ("batch", 7), ("batch", 10), ("batch", 11), ("validation", 4)],
)
def test_a_run_goes_on_from_a_checkpoint_to_the_bit(hook: str, count: int, tmp_path: Path) -> None:
    def run(*others: Callback, path: Path | None = None) -> tuple[lt.SWAWeights, Toy]:
        ours, module = swa(start="30%", lr=0.2, anneal=6), Toy()
        runner = trainer(ours, lt.WarmupCosine(), *others, val_check_interval=2)
        runner.fit(module, Loader(), VALIDATION, ckpt_path=path)
        return ours, module

    hook = {"batch": "on_train_batch_end", "validation": "on_validation_end"}[hook]
    with pytest.raises(StopError):
        run(StopAfter(count, tmp_path / "a.ckpt", hook))
    (first, whole), (second, resumed) = run(), run(path=tmp_path / "a.ckpt")
    assert_equal(weights(whole), weights(resumed))
    assert_equal(live_of(first, whole), live_of(second, resumed))
    assert_equal(first.saved(), second.saved())


def test_a_longer_run_keeps_the_start_that_has_come(tmp_path: Path) -> None:
    def build() -> lt.SWAWeights:
        return swa(start="40%", lr=0.2, anneal=2)

    path = tmp_path / "a.ckpt"
    with pytest.raises(StopError):
        trainer(build(), StopAfter(2, path, "on_validation_end")).fit(Toy(), Loader(), VALIDATION)
    ours, rates = build(), Rates()
    trainer(ours, rates, max_epochs=6).fit(Toy(), Loader(), VALIDATION, ckpt_path=path)
    assert ours.outcome() == {"snapshots": 13}  # 6, 8, ..., 30, and not from 12 on
    assert rates.rows == [[0.2]] * 20


class Breaks(Callback):
    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.live = weights(pl_module)

    def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.current_epoch == 1:
            raise StopError


def test_an_error_in_validation_leaves_those_of_training() -> None:
    breaks, module = Breaks(), Toy()
    with pytest.raises(StopError):
        trainer(swa(), breaks).fit(module, Loader(), VALIDATION)
    assert_equal(weights(module), breaks.live)


def test_they_have_one_owner() -> None:
    with pytest.raises(lt.ConflictError, match="'batchnorm' must have one owner, got .* update_batchnorm=F"):
        trainer(lt.PreciseBatchNorm(), swa()).fit(Toy(), Loader())
    pair = [swa(label="a", params="body"), swa(label="b", params="head")]
    with pytest.raises(lt.ConflictError, match=r"set update_batchnorm=False in SWAWeights\[a\], or"):
        trainer(*pair).fit(Toy(), Loader())


@pytest.mark.parametrize("first", [True, False])
def test_another_may_own_them(first: bool) -> None:
    precise, ours, module = lt.PreciseBatchNorm(), swa(update_batchnorm=False), Toy()
    checks = Checks(5)
    trainer(*([precise, ours] if first else [ours, precise]), checks).fit(module, Fixed(), VALIDATION)
    check(module, list(Fixed()))
    pair = [swa(label="a", params="body"), swa(label="b", params="head", update_batchnorm=False)]
    trainer(*pair).fit(other := Toy(), Fixed(), VALIDATION)
    assert_equal(dict(other.named_parameters()), dict(module.named_parameters()))


def test_a_module_without_any_is_none_the_worse() -> None:
    module = Toy()
    module.body[1] = torch.nn.LayerNorm(8)
    trainer(swa()).fit(module, Loader(), VALIDATION)
