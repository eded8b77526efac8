"""The five in one run: resumed, in any order of the list, and what the module holds at the end."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

import lightning_tricks as lt
from lightning_tricks.lifecycle.technique import Technique
from tests.contract.regimes import REGIMES, Regime
from tests.contract.test_laws import every_stop, fit, full_state, traces
from tests.host_reads import HostReads
from tests.toys import Loader, StopAfter, StopError, Toy, assert_equal, trainer, weights


def five(**fusion: Any) -> list[Technique]:
    settings = {"collect": lt.LastEpochs(2), "monitor": "val_loss", "mode": "min", "keep": "always", **fusion}
    return [
        lt.GradientClip(max_norm=0.5),
        lt.WarmupCosine(warmup="20%", final=0.1),
        lt.EMAWeights(decay=0.9),
        lt.ProgressiveUnfreeze(stages=["head", "body"], at="1 epoch"),
        lt.WeightFusion(**settings),
    ]


@every_stop
def test_resumed_run_of_all_five_equals_uninterrupted_run(
    stop: tuple[str, int], regime: Regime, tmp_path: Path
) -> None:
    whole, whole_runner = fit(regime, *five(), root=tmp_path / "whole")
    saved = tmp_path / "parts" / "stopped.ckpt"
    with pytest.raises(StopError):
        fit(regime, *five(), StopAfter(stop[1], saved, stop[0]), root=tmp_path / "parts")
    parts, runner = fit(regime, *five(), ckpt_path=saved, root=tmp_path / "parts")
    assert_equal(weights(whole), weights(parts))
    assert_equal(full_state(whole_runner, tmp_path / "a.ckpt"), full_state(runner, tmp_path / "b.ckpt"))


@pytest.mark.parametrize("regime", ["fp32", "16-mixed, accumulation", "compiled"])
@pytest.mark.parametrize("first", [lt.SharpnessAware, lt.GradientSurgery], ids=["sharpness", "surgery"])
def test_resumed_run_with_other_passes_and_all_five_equals_uninterrupted_run(
    first: Callable[[], Technique], regime: str, tmp_path: Path
) -> None:
    def run(root: str, *others: Callback, **options: Any) -> tuple[Toy, Trainer]:
        return fit(REGIMES[regime], first(), *five(), *others, root=tmp_path / root, **options)

    whole, whole_runner = run("whole")
    saved = tmp_path / "parts" / "stopped.ckpt"
    with pytest.raises(StopError):
        run("parts", StopAfter(9, saved))
    parts, runner = run("parts", ckpt_path=saved)
    assert_equal(weights(whole), weights(parts))
    assert_equal(full_state(whole_runner, tmp_path / "a.ckpt"), full_state(runner, tmp_path / "b.ckpt"))


@pytest.mark.parametrize("pair", list(itertools.combinations(range(5), 2)), ids=str)
def test_the_order_of_any_two_in_the_list_does_not_matter(pair: tuple[int, int], tmp_path: Path) -> None:
    results = []
    for order in (pair, pair[::-1]):
        techniques = [five()[index] for index in order]
        module, _ = fit(REGIMES["fp32"], *techniques, root=tmp_path / str(order))
        results.append(weights(module))
    assert_equal(*results)


def reads_per_step(*techniques: Technique, fused: bool) -> float:
    """Return the host reads of a step that does not log; what happens once in a run cancels out."""
    counts = []
    for batches in (20, 40):
        runner = trainer(*techniques, max_epochs=1, log_every_n_steps=1000)
        with HostReads() as reads:
            runner.fit(Toy(fused=fused), Loader(batches))
        counts.append(reads.count)
    return (counts[1] - counts[0]) / 20


@pytest.mark.parametrize(("fused", "extra"), [(True, 0), (False, 1)])
def test_a_step_reads_nothing_back_but_what_skipping_needs(
    fused: bool, extra: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    techniques = five(monitor=None)
    techniques[3] = lt.ProgressiveUnfreeze(stages=["*"])  # what is frozen is not stepped, and read less
    plain = reads_per_step(fused=fused)
    assert reads_per_step(*techniques, fused=fused) - plain == extra


def held(tmp_path: Path, *techniques: Technique) -> tuple[Toy, Trainer]:
    return fit(REGIMES["fp32"], *techniques, root=tmp_path)


def test_fusing_one_average_gives_that_average(tmp_path: Path) -> None:
    last = {"collect": lt.LastEpochs(1), "keep": "always", "update_batchnorm": False}
    average, _ = held(tmp_path / "a", lt.EMAWeights(decay=0.9))
    fused, _ = held(tmp_path / "b", lt.EMAWeights(decay=0.9), lt.WeightFusion(source="average", **last))
    live, _ = held(tmp_path / "c", lt.EMAWeights(decay=0.9), lt.WeightFusion(source="live", **last))
    plain, _ = held(tmp_path / "d")
    assert_equal(weights(fused), weights(average))
    assert_equal(weights(live), weights(plain))


def test_the_live_weights_stay_those_of_training_where_fusion_estimates_statistics(tmp_path: Path) -> None:
    plain, _ = held(tmp_path / "plain")
    live, ema = weights(plain), lt.EMAWeights(decay=0.9)
    fused, runner = held(tmp_path / "fused", ema, lt.WeightFusion(keep="always"))
    before = weights(fused)
    assert not torch.equal(before["body.1.running_mean"], live["body.1.running_mean"])
    runner.save_checkpoint(tmp_path / "after.ckpt")
    assert_equal(lt.live_state(tmp_path / "after.ckpt"), live)
    with ema.live_weights():
        assert_equal(weights(fused), live)
    assert_equal(weights(fused), before)


def test_a_second_fit_goes_on_from_the_live_weights(tmp_path: Path) -> None:
    # One rate throughout: a schedule would rightly stretch over the longer run.
    def four() -> list[Technique]:
        return [each for each in five() if not isinstance(each, lt.WarmupCosine)]

    def run(epochs: int, root: Path) -> tuple[Toy, Trainer]:
        module = Toy(optimizer="SGD")  # a second fit makes new optimizers, so one without state
        runner = trainer(*four(), default_root_dir=root, max_epochs=epochs)
        runner.fit(module, Loader(), Loader(2, seed=9, fixed=True))
        return module, runner

    whole, _ = run(3, tmp_path / "whole")
    parts, runner = run(2, tmp_path / "parts")
    runner.fit_loop.max_epochs = 3
    runner.fit(parts, Loader(), Loader(2, seed=9, fixed=True))
    assert_equal(weights(whole), weights(parts))
    assert traces(parts, runner) == []
