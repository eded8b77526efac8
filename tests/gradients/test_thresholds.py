"""Thresholds that follow the norms: against slow twins, and in runs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_tricks import GradientClip, Percentile, ZScore
from lightning_tricks.gradients import thresholds
from lightning_tricks.gradients.thresholds import AdaptiveThreshold
from tests.contract import test_laws
from tests.contract.cases import Case
from tests.contract.regimes import REGIMES
from tests.contract.test_laws import STOPS
from tests.contract.test_together import reads_per_step
from tests.toys import Loader, Toy, TwoOptimizers, trainer, weights

POLICIES = [Percentile(), Percentile(50), ZScore(z_max=1.0, alpha=0.5, warmup_steps=2)]
each_policy = pytest.mark.parametrize("policy", POLICIES, ids=repr)


def limits(
    policy: AdaptiveThreshold, norms: Iterable[float], dtype: torch.dtype = torch.float64
) -> list[float]:
    """Return the threshold at each of ``norms``."""
    state, found = policy.start(torch.zeros((), dtype=dtype)), []
    for norm in norms:
        state, limit = policy.observe(state, torch.tensor(norm, dtype=dtype))
        assert limit.shape == ()
        found.append(limit.item())
    return found


def spiky(count: int, seed: int = 0) -> list[float]:
    """Return norms of which one in twenty is a spike, and one in thirty is not finite."""
    generator = np.random.default_rng(seed)
    norms = generator.lognormal(0.0, 0.3, count) * np.where(generator.random(count) < 0.05, 30.0, 1.0)
    norms[::30] = generator.choice([np.nan, np.inf], len(norms[::30]))
    return norms.tolist()


@pytest.mark.parametrize("percent", [0, 10.0, 37.5, 100])
def test_percentile_is_numpys_of_all_finite_norms(percent: float) -> None:
    norms = spiky(200)
    for count, limit in enumerate(limits(Percentile(percent), norms), start=1):
        finite = [norm for norm in norms[:count] if math.isfinite(norm)]
        expected = np.percentile(finite, percent) if finite else math.inf
        assert limit == pytest.approx(expected, rel=1e-12)


def test_percentile_forgets_what_lies_before_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thresholds, "WINDOW", 7)
    norms = np.random.default_rng(1).random(30)
    found = limits(Percentile(80), norms)
    assert found == pytest.approx(
        [np.percentile(norms[max(0, k - 6) : k + 1], 80) for k in range(30)], rel=1e-12
    )


def test_percentile_of_ten_thousand_is_of_all_of_them() -> None:
    norms = torch.rand(9_999, generator=torch.Generator().manual_seed(0))
    state, limit = Percentile(10).observe({"norms": norms}, torch.tensor(5.0))
    assert limit.item() == pytest.approx(np.percentile([*norms.tolist(), 5.0], 10), rel=1e-6)
    state, _ = Percentile(10).observe(state, torch.tensor(6.0))
    assert torch.equal(state["norms"], torch.cat([norms[1:], torch.tensor([5.0, 6.0])]))


def slow_zclip(policy: ZScore, norms: Iterable[float]) -> list[float]:
    """Return what is left of each norm, in the paper's notation."""
    watched: list[float] = []
    mu = sigma = math.nan
    left = []
    for g in norms:
        if not math.isfinite(g):
            left.append(math.nan)
        elif len(watched) < policy.warmup_steps:
            watched.append(g)
            mu, sigma = np.mean(watched), np.std(watched)
            left.append(g)
        else:
            z = (g - mu) / max(sigma, 0.01 * mu)
            g_clipped = mu + policy.z_max**2 / z * max(sigma, 0.01 * mu) if z > policy.z_max else g
            mu = policy.alpha * mu + (1 - policy.alpha) * g_clipped
            sigma = math.sqrt(policy.alpha * sigma**2 + (1 - policy.alpha) * (g_clipped - mu) ** 2)
            left.append(g_clipped)
    return left


@pytest.mark.parametrize("policy", [ZScore(), ZScore(z_max=1.0, alpha=0.5, warmup_steps=1)], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_zclip_leaves_what_its_slow_twin_leaves(policy: ZScore, dtype: torch.dtype) -> None:
    norms = torch.tensor(spiky(300), dtype=dtype).tolist()
    pairs = zip(norms, limits(policy, norms, dtype), strict=True)
    left = [min(norm, limit) if math.isfinite(norm) else math.nan for norm, limit in pairs]
    expected = slow_zclip(policy, norms)
    assert left == pytest.approx(expected, rel=1e-9 if dtype == torch.float64 else 1e-4, nan_ok=True)
    assert sum(after < before for before, after in zip(norms, left, strict=True)) > 5


def test_zclip_by_hand() -> None:
    # Mean 2 and deviation 1; 12 is z = 10, and cut to 2 + 4 / 10. Then mean 2.2, variance (1 + 0.04) / 2.
    policy = ZScore(z_max=2.0, alpha=0.5, warmup_steps=2)
    found = limits(policy, [1.0, 3.0, 12.0, 0.0])
    assert found == pytest.approx([math.inf, math.inf, 2.4, 2.2 + 2 * math.sqrt(0.52)])


def test_norms_that_hardly_differ_are_no_spikes() -> None:
    norms = [1.0] * 30 + [1.02] * 30
    assert all(norm <= limit for norm, limit in zip(norms, limits(ZScore(), norms), strict=True))
    assert limits(ZScore(), [0.0] * 30)[-1] > 0.0


def test_zclip_complains_of_a_lasting_jump_only() -> None:
    def complaint(norms: list[float]) -> str | None:
        state = (policy := ZScore()).start(torch.zeros(()))
        for norm in norms:
            state, _ = policy.observe(state, torch.tensor(norm))
        return policy.complaint(state)

    calm, generator = [1.0, 1.1] * 30, np.random.default_rng(0)
    assert complaint(calm) is complaint(calm + [10.0] * 99) is complaint(calm + [10.0] * 99 + calm) is None
    assert "the last 100 steps were all clipped" in (complaint(calm + [10.0] * 100) or "")
    assert "all clipped" in (complaint(calm + [10.0, math.nan] * 100) or "")
    assert complaint([*generator.lognormal(0.0, 1.0, 1000)]) is None


def test_half_precision_norms_are_counted_in_single() -> None:
    state, limit = Percentile(100).observe(
        Percentile().start(torch.tensor(1.0, dtype=torch.bfloat16)), torch.tensor(3.0, dtype=torch.bfloat16)
    )
    assert (state["norms"].dtype, limit.dtype, limit.item()) == (torch.float32, torch.float32, 3.0)


class Norms(Callback):
    """Collects the norms of each optimizer's gradients, before and after clipping."""

    def __init__(self) -> None:
        self.seen: dict[int, list[float]] = {}

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.get_total_norm(grads).item()
        self.seen.setdefault(trainer.optimizers.index(optimizer), []).append(norm)


@pytest.mark.parametrize("module", [Toy, TwoOptimizers])
@each_policy
def test_gradients_are_cut_to_the_threshold_of_their_own_optimizer(
    policy: AdaptiveThreshold, module: type[Toy]
) -> None:
    before, after = Norms(), Norms()
    trainer(before, GradientClip(max_norm=policy), after).fit(module(), Loader())
    assert len(before.seen) == (2 if module is TwoOptimizers else 1)
    for index, norms in before.seen.items():
        expected = [min(pair) for pair in zip(norms, limits(policy, norms, torch.float32), strict=True)]
        assert after.seen[index] == pytest.approx(expected, rel=1e-4)
        assert sum(left < norm * 0.999 for left, norm in zip(expected, norms, strict=True)) >= 2


@pytest.mark.sampled(3)
@pytest.mark.parametrize("stop", STOPS[:2], ids=str)
@pytest.mark.parametrize("regime", REGIMES)
@each_policy
def test_the_laws_of_resuming_hold(
    policy: AdaptiveThreshold, regime: str, stop: tuple[str, int], tmp_path: Path
) -> None:
    case = Case(neutral=GradientClip, active=lambda: GradientClip(max_norm=policy))
    test_laws.test_an_active_run_differs_and_resumes(case, stop, REGIMES[regime], tmp_path)


def test_resuming_needs_the_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Percentile, "knows", lambda self, state: False)
    with pytest.raises(AssertionError):
        test_the_laws_of_resuming_hold(Percentile(), "fp32", STOPS[0], tmp_path)


@each_policy
def test_repr_pickle_and_yaml_rebuild_it(policy: AdaptiveThreshold) -> None:
    clip = Case(neutral=lambda: GradientClip(max_norm=policy), active=lambda: GradientClip(max_norm=policy))
    test_laws.test_repr_pickle_and_yaml_rebuild_it(clip)


@each_policy
@pytest.mark.parametrize(("fused", "non_finite"), [(True, "skip"), (False, "keep")])
def test_nothing_is_read_back_to_the_host(policy: AdaptiveThreshold, fused: bool, non_finite: Any) -> None:
    clip = GradientClip(max_norm=policy, non_finite=non_finite)
    assert reads_per_step(clip, fused=fused) == reads_per_step(fused=fused)


class Spike(Callback):
    """Multiplies the gradients of some steps."""

    def __init__(self, factor: float, steps: Iterable[int]) -> None:
        self.factor, self.steps, self.step = factor, set(steps), -1

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, _: Any) -> None:
        self.step += 1
        if self.step in self.steps:
            for parameter in pl_module.parameters():
                parameter.grad *= self.factor


@each_policy
@pytest.mark.parametrize("fused", [False, True])
def test_what_is_not_finite_leaves_the_statistics_alone(policy: AdaptiveThreshold, fused: bool) -> None:
    clip, module = GradientClip(max_norm=policy), Toy(fused=fused)
    runner = trainer(Spike(math.inf, [3]), clip)
    runner.fit(module, Loader())
    assert clip.outcome()["skipped"] == 1
    assert all(torch.isfinite(value).all() for value in weights(module).values())
    assert math.isfinite(runner.callback_metrics["gradient_clip/threshold"])


def test_a_lasting_jump_is_told_once() -> None:
    with pytest.warns(UserWarning, match="GradientClip: the norm has jumped for good") as told:
        trainer(Spike(1e3, range(10, 999)), GradientClip(max_norm=ZScore(warmup_steps=5)), max_epochs=1).fit(
            Toy(optimizer="SGD", lr=0.0), Loader(150)
        )
    assert len([each for each in told if "jumped" in str(each.message)]) == 1


def test_a_changed_policy_is_told_and_starts_anew(tmp_path: Path) -> None:
    runner = trainer(GradientClip(max_norm=Percentile(10)), max_epochs=1)
    runner.fit(Toy(), Loader())
    runner.save_checkpoint(tmp_path / "a.ckpt")
    for policy, known in ((Percentile(20), 10), (ZScore(), None)):
        clip = GradientClip(max_norm=policy)
        with pytest.warns(UserWarning, match="changed settings: max_norm"):
            trainer(clip, max_epochs=2).fit(Toy(), Loader(), ckpt_path=tmp_path / "a.ckpt")
        (seen,) = clip.saved()["seen"].values()
        assert len(seen["norms"]) == known if known else seen["seen"] == 5


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Percentile(101), r"percent must lie in \[0.0, 100.0\], got 101"),
        (lambda: ZScore(z_max=0.0), r"z_max must lie in \(0.0, inf\), got 0.0"),
        (lambda: ZScore(alpha=1.0), r"alpha must lie in \[0.0, 1.0\), got 1.0"),
        (lambda: ZScore(warmup_steps=0), "warmup_steps must be at least 1, got 0"),
        (lambda: GradientClip(max_value=Percentile()), "max_value must be a number, got Percentile"),
        (
            lambda: GradientClip(max_norm=Percentile(10), max_value=1.0),
            r"max_value must be None with max_norm=Percentile\(percent=10.0\), got 1.0",
        ),
    ],
)
def test_bad_settings_are_refused(build: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        build()
