from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from lightning_tricks import ConflictError, GradientClip, linear
from lightning_tricks.core.gradients import Gradients, gradients_of
from lightning_tricks.core.norms import total_norm
from lightning_tricks.gradients.norms import clip_, within
from lightning_tricks.gradients.skipping import (
    cancel_step_,
    counts_skipped_steps,
    drop_gradients_,
    non_finite_names,
)
from tests.host_reads import HostReads
from tests.toys import Loader, Toy, TwoOptimizers, assert_equal, scaler_plugin, trainer, weights


def parameters(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(7, 5), (5,), (), (2, 3, 3, 3)]
    made = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    for p in made:
        p.grad = torch.randn(p.shape, generator=generator)
    return made


def of(chosen: list[nn.Parameter]) -> list[Gradients]:
    return gradients_of(torch.optim.SGD(chosen))


def norm_of(chosen: list[nn.Parameter], norm_type: float = 2.0) -> Tensor:
    return total_norm(of(chosen), norm_type)


@pytest.mark.parametrize("norm_type", [0.5, 1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("limit", [0.0, 0.3, 1e9])
def test_norm_clipping_is_torchs_to_the_bit(norm_type: float, limit: float) -> None:
    ours, theirs = parameters(), parameters()
    expected = clip_grad_norm_(theirs, limit, norm_type)
    norm = norm_of(ours, norm_type)
    clipped = clip_(of(ours), norm, max_norm=limit, max_value=None, norm_type=norm_type)
    assert torch.equal(norm, expected)
    assert_equal([p.grad for p in ours], [p.grad for p in theirs])
    assert bool(clipped) is (limit < 1e9)


def test_value_first_then_the_norm_of_what_is_left() -> None:
    ours, theirs = parameters(), parameters()
    clip_(of(ours), norm_of(ours), max_norm=1.0, max_value=0.5, norm_type=2.0)
    clip_grad_value_(theirs, 0.5)
    clip_grad_norm_(theirs, 1.0)
    assert_equal([p.grad for p in ours], [p.grad for p in theirs])


def test_value_alone_tells_whether_it_acted() -> None:
    for limit, acted in ((0.5, True), (100.0, False)):
        ours = parameters()
        clipped = clip_(of(ours), norm_of(ours), max_norm=None, max_value=limit, norm_type=2.0)
        assert bool(clipped) is acted


@pytest.mark.parametrize("kind", ["SGD", "AdamW", "Adagrad"])
@pytest.mark.parametrize("fused", [False, True])
def test_cancelled_step_leaves_weights_momentum_and_decay(kind: str, fused: bool) -> None:
    extra = {"momentum": 0.9} if kind == "SGD" else {}
    chosen = parameters()
    optimizer = getattr(torch.optim, kind)(chosen, lr=0.1, weight_decay=0.1, fused=fused, **extra)
    optimizer.step()
    before = [p.detach().clone() for p in chosen]
    states = optimizer.state.values()
    momenta = [{k: v.clone() for k, v in s.items() if isinstance(v, Tensor)} for s in states]
    for p in chosen:
        p.grad = torch.full_like(p, math.nan)
    if fused:
        assert cancel_step_(optimizer, torch.tensor(math.nan))
    else:
        drop_gradients_(optimizer)
    optimizer.step()
    assert_equal(before, [p.detach() for p in chosen])
    now = [{k: v for k, v in s.items() if isinstance(v, Tensor)} for s in optimizer.state.values()]
    assert_equal(momenta, now)
    vars(optimizer).pop("found_inf", None)
    for p in chosen:
        p.grad = torch.ones_like(p)
    if fused:
        assert not cancel_step_(optimizer, torch.tensor(1.0))
    optimizer.step()
    assert not torch.equal(before[0], chosen[0])


@pytest.mark.parametrize("limit", [1.0, 0.1, 3.0, 1e-3, 77.7])
def test_scaling_is_left_out_only_where_torchs_factor_is_one(limit: float) -> None:
    for scale in (0.5, 1 - 1e-5, 1 - 3e-6, 1 - 1e-6, 1 - 1e-7, 1.0, 1 + 1e-7, 2.0):
        norm = torch.tensor(limit * scale)
        factor = torch.clamp(limit / (norm + 1e-6), max=1.0)
        assert factor == 1.0 or not within(norm.item(), limit)
    assert within(0.5 * limit, limit)
    assert not within(None, limit)
    assert not within(0.1, None)


def test_optimizers_that_count_skipped_steps_are_known() -> None:
    chosen = parameters()
    assert counts_skipped_steps(torch.optim.LBFGS(chosen))
    assert not counts_skipped_steps(torch.optim.SGD(chosen, lr=0.1))


def test_names_of_non_finite_gradients() -> None:
    named = dict(zip("abcd", parameters(), strict=True))
    named["b"].grad[0] = math.inf
    named["d"].grad = None
    assert non_finite_names(named) == ["b"]


REGIMES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "16-mixed": {"plugins": "scaler"},
    "accumulation": {"accumulate_grad_batches": 2},
}


def settings(regime: str) -> dict[str, Any]:
    chosen = dict(REGIMES[regime])
    return {"plugins": [scaler_plugin()]} if "plugins" in chosen else chosen


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_ends_at_the_weights_of_lightnings_own_clipping(regime: str, algorithm: str) -> None:
    ours, theirs = Toy(), Toy()
    clip = GradientClip(max_norm=0.2) if algorithm == "norm" else GradientClip(max_norm=None, max_value=0.02)
    limit = 0.2 if algorithm == "norm" else 0.02
    trainer(clip, **settings(regime)).fit(ours, Loader())
    own = {"gradient_clip_val": limit, "gradient_clip_algorithm": algorithm}
    trainer(**own, **settings(regime)).fit(theirs, Loader())
    assert_equal(weights(theirs), weights(ours))


class ClipsItself(TwoOptimizers):
    """Clips each optimizer's gradients by torch's function, just before it steps."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        torch.manual_seed(1000 * self.current_epoch + batch_idx)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        for optimizer, part in zip(self.optimizers(), (self.body, self.head), strict=True):
            clip_grad_norm_(part.parameters(), 0.2)
            optimizer.step()


def test_manual_optimization_clips_each_optimizers_own_parameters() -> None:
    ours, theirs = TwoOptimizers(), ClipsItself()
    trainer(GradientClip(max_norm=0.2)).fit(ours, Loader())
    trainer().fit(theirs, Loader())
    assert_equal(weights(theirs), weights(ours))


class Norms(Callback):
    """Collects the logged norms."""

    def __init__(self, name: str = "gradient_clip/norm") -> None:
        self.name = name
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.seen.append(trainer.callback_metrics[self.name].item())


@pytest.mark.parametrize("module", [Toy, TwoOptimizers])
def test_gradients_are_unscaled_also_in_manual_optimization_18089(module: type[Toy]) -> None:
    found = []
    for scale in (1.0, 1024.0):
        norms = Norms("gradient_clip/norm" + ("/0" if module is TwoOptimizers else ""))
        trainer(GradientClip(), norms, plugins=[scaler_plugin(scale)]).fit(module(), Loader())
        found.append(norms.seen)
    # Powers of two scale half precision without rounding, as long as nothing underflows.
    assert found[0] == pytest.approx(found[1], rel=1e-2)


@pytest.mark.parametrize("plugin", [False, True])
def test_fused_optimizers_15501_21435(plugin: bool) -> None:
    results = []
    for fused in (False, True):
        module = Toy(optimizer="SGD", fused=fused)
        regime = {"plugins": [scaler_plugin()]} if plugin else {"precision": "bf16-mixed"}
        trainer(GradientClip(max_norm=0.2), **regime).fit(module, Loader())
        results.append(weights(module))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, msg=name)


class Poison(Callback):
    """Writes a bad entry into one gradient, before others look at it, at steps 2 and 3."""

    def __init__(self, value: float) -> None:
        self.value, self.step = value, -1
        self.kept: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, _: Any) -> None:
        self.step += 1
        if self.step in (2, 3):
            pl_module.head.weight.grad[0, 0] = self.value
            self.kept.append(weights(pl_module.head))
        if self.step == 4:
            self.kept.append(weights(pl_module.head))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_skip_means_that_the_update_does_not_happen(fused: bool, value: float) -> None:
    module, clip, poison = Toy(fused=fused), GradientClip(max_norm=0.1), Poison(value)
    runner = trainer(poison, clip)
    runner.fit(module, Loader())
    assert_equal(poison.kept[0], poison.kept[2])
    assert clip.outcome()["skipped"] == 2
    assert clip.outcome()["steps"] == 15
    assert (clip.clock.position, clip.clock.updates) == (15, 15 if fused else 13)
    assert all(torch.isfinite(p).all() for p in module.parameters())
    assert not hasattr(runner.optimizers[0], "found_inf")


def test_raise_names_the_parameters_before_clipping_spreads_the_damage() -> None:
    module = Toy()
    with pytest.raises(FloatingPointError, match=r"got norm inf at step 2: head\.weight\n"):
        trainer(Poison(math.inf), GradientClip(non_finite="raise")).fit(module, Loader())


def test_keep_steps_all_the_same() -> None:
    module = Toy()
    trainer(Poison(math.nan), GradientClip(non_finite="keep")).fit(module, Loader())
    assert torch.isnan(module.head.weight).any()


def test_an_overflow_is_the_scalers_business() -> None:
    module, clip, plugin = Toy(), GradientClip(non_finite="raise"), scaler_plugin(2.0**40)
    trainer(clip, plugins=[plugin]).fit(module, Loader())
    assert plugin.scaler.get_scale() < 2.0**40
    assert clip.outcome()["skipped"] == 0
    assert clip.clock.updates < clip.clock.position == 15


def test_clips_only_what_it_was_told() -> None:
    seen = {}

    class Look(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, _: Any) -> None:
            seen.update({n: norm_of([p]).item() for n, p in pl_module.named_parameters()})

    trainer(GradientClip(max_norm=0.0, params="head"), Look()).fit(Toy(), Loader())
    assert seen["head.weight"] == seen["head.bias"] == 0.0
    assert seen["body.0.weight"] > 0.0


def test_two_of_them_for_two_parts_need_labels() -> None:
    parts = {"max_norm": 0.1, "params": "body"}, {"max_norm": 0.1, "params": "head"}
    with pytest.raises(ConflictError, match="GradientClip twice: .* give each a label"):
        trainer(*(GradientClip(**part) for part in parts)).fit(Toy(), Loader())
    both = [GradientClip(label=label, **part) for label, part in zip("ab", parts, strict=True)]
    runner = trainer(*both)
    runner.fit(Toy(), Loader())
    assert {"a/gradient_clip/norm", "b/gradient_clip/norm"} <= runner.callback_metrics.keys()


def test_logs_norm_before_clipping_threshold_share_and_count(tmp_path: Any) -> None:
    logger = CSVLogger(tmp_path)
    clip = GradientClip(max_norm=linear(start=1.0, to=0.0))
    trainer(clip, logger=logger, log_every_n_steps=5).fit(Toy(), Loader())
    header, *rows = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
    thresholds = [float(row.split(",")[header.split(",").index("gradient_clip/threshold")]) for row in rows]
    assert thresholds == pytest.approx([1 - 4 / 15, 1 - 9 / 15, 1 - 14 / 15])
    assert {f"gradient_clip/{n}" for n in ("norm", "clipped", "skipped")} <= set(header.split(","))


def test_values_of_several_optimizers_do_not_overwrite_each_other() -> None:
    runner = trainer(GradientClip())
    runner.fit(TwoOptimizers(), Loader())
    norms = [runner.callback_metrics[f"gradient_clip/norm/{index}"] for index in (0, 1)]
    assert norms[0] != norms[1]
    assert "gradient_clip/norm" not in runner.callback_metrics


@pytest.mark.parametrize(("fused", "extra"), [(True, 0), (False, 15)])
def test_host_reads_beyond_the_plain_run(fused: bool, extra: int) -> None:
    counts = []
    for callbacks in ([], [GradientClip(max_norm=0.1)]):
        with HostReads() as reads:
            trainer(*callbacks, log_every_n_steps=1000).fit(Toy(fused=fused), Loader())
        counts.append(reads.count)
    assert counts[1] - counts[0] == extra
